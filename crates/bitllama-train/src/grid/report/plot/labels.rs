//! Where the names of points stand: each near its point, clear of the other names, of markers and of lines.

/// In pixels; y grows downwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rect {
    /// Left.
    pub x0: f64,
    /// Top.
    pub y0: f64,
    /// Right.
    pub x1: f64,
    /// Bottom.
    pub y1: f64,
}

impl Rect {
    /// Around a point.
    pub fn around(x: f64, y: f64, half_width: f64, half_height: f64) -> Self {
        Self { x0: x - half_width, y0: y - half_height, x1: x + half_width, y1: y + half_height }
    }

    /// The area that two have in common.
    pub fn overlap(&self, other: &Rect) -> f64 {
        let width = self.x1.min(other.x1) - self.x0.max(other.x0);
        let height = self.y1.min(other.y1) - self.y0.max(other.y0);
        width.max(0.0) * height.max(0.0)
    }

    /// What of it is outside of another.
    fn outside(&self, bounds: &Rect) -> f64 {
        (self.x1 - self.x0) * (self.y1 - self.y0) - self.overlap(bounds)
    }
}

/// A name to be placed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wish {
    /// Its point.
    pub x: f64,
    /// Its point.
    pub y: f64,
    /// Of the text.
    pub width: f64,
    /// Of the text.
    pub height: f64,
}

/// A name in its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Label {
    /// Around the text.
    pub rect: Rect,
    /// Whether it is so far from its point that a line must join them.
    pub far: bool,
}

/// Distances from the point to the edge of its name; the first is just beside the marker.
const RINGS: [f64; 7] = [8.0, 13.0, 22.0, 34.0, 48.0, 64.0, 82.0];
/// Directions around a point.
const DIRECTIONS: usize = 16;
/// Rounds in which each name may move after all others have.
const ROUNDS: usize = 8;

/// A place for each name, or none where there is no room for it. `obstacles` have a weight: 1 is as bad as another name.
pub fn place(wishes: &[Wish], obstacles: &[(Rect, f64)], bounds: Rect) -> Vec<Option<Label>> {
    let mut labels: Vec<Option<Label>> = vec![None; wishes.len()];
    for _ in 0..ROUNDS {
        let before = labels.clone();
        for index in 0..wishes.len() {
            let others: Vec<Rect> = labels
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != index)
                .filter_map(|(_, label)| Some(label.as_ref()?.rect))
                .collect();
            labels[index] = best(&wishes[index], &others, obstacles, bounds);
        }
        if labels == before {
            break;
        }
    }
    // Where there is no room, the table has to do.
    for index in 0..labels.len() {
        let crowded = |label: &Label| {
            let covers = |other: &Label| label.rect.overlap(&other.rect) > 8.0;
            labels[..index].iter().flatten().any(covers) || label.rect.outside(&bounds) > 0.0
        };
        labels[index] = labels[index].filter(|label| !crowded(label));
    }
    labels
}

fn best(wish: &Wish, others: &[Rect], obstacles: &[(Rect, f64)], bounds: Rect) -> Option<Label> {
    let cost = |(rect, distance): &(Rect, f64)| {
        let names: f64 = others.iter().map(|other| rect.overlap(other)).sum();
        let rest: f64 = obstacles.iter().map(|(obstacle, weight)| weight * rect.overlap(obstacle)).sum();
        10.0 * rect.outside(&bounds) + 3.0 * names + 2.0 * rest + distance
    };
    let (rect, _, ring) = candidates(wish)
        .map(|(rect, distance, ring)| (rect, cost(&(rect, distance)), ring))
        .min_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(Label { rect, far: ring > 1 })
}

/// Places with what their distance costs and the number of their ring.
fn candidates(wish: &Wish) -> impl Iterator<Item = (Rect, f64, usize)> {
    let Wish { x, y, width, height } = *wish;
    RINGS.into_iter().enumerate().flat_map(move |(ring, distance)| {
        (0..DIRECTIONS).map(move |direction| {
            let angle = direction as f64 * std::f64::consts::TAU / DIRECTIONS as f64;
            let (sin, cos) = angle.sin_cos();
            // Beside, above or below the point, and at most directions beyond its corner.
            let beyond = |part: f64, size: f64| part * distance + (1.6 * part).clamp(-1.0, 1.0) * size / 2.0;
            let (centre_x, centre_y) = (x + beyond(cos, width), y + beyond(sin, height));
            let rect = Rect::around(centre_x, centre_y, width / 2.0, height / 2.0);
            // To the right is where a name is looked for.
            (rect, 0.8 * distance + 3.0 * (1.0 - cos), ring)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Rect = Rect { x0: 0.0, y0: 0.0, x1: 600.0, y1: 400.0 };

    fn wish(x: f64, y: f64) -> Wish {
        Wish { x, y, width: 50.0, height: 14.0 }
    }

    #[test]
    fn alone_it_stands_to_the_right() {
        let label = place(&[wish(100.0, 100.0)], &[], BOUNDS)[0].unwrap();
        assert!(!label.far && label.rect == Rect { x0: 108.0, y0: 93.0, x1: 158.0, y1: 107.0 }, "{label:?}");
        // At the right end there is no room.
        let label = place(&[wish(590.0, 100.0)], &[], BOUNDS)[0].unwrap();
        assert!(label.rect.x1 <= BOUNDS.x1);
    }

    #[test]
    fn a_crowd_does_not_overlap() {
        let wishes: Vec<Wish> = (0..20).map(|i| wish(300.0 + (i % 3) as f64, 150.0 + 5.0 * i as f64)).collect();
        let markers: Vec<(Rect, f64)> = wishes.iter().map(|w| (Rect::around(w.x, w.y, 6.0, 6.0), 1.0)).collect();
        let placed: Vec<Label> = place(&wishes, &markers, BOUNDS).into_iter().flatten().collect();
        assert!(placed.len() >= 18, "{}", placed.len());
        for (index, label) in placed.iter().enumerate() {
            assert!(placed[..index].iter().all(|other| label.rect.overlap(&other.rect) <= 8.0));
            assert!(markers.iter().all(|(marker, _)| label.rect.overlap(marker) < 20.0), "{label:?}");
        }
    }

    #[test]
    fn without_room_there_is_no_name() {
        let placed = place(&[wish(10.0, 10.0)], &[], Rect { x0: 0.0, y0: 0.0, x1: 30.0, y1: 30.0 });
        assert_eq!(placed, [None]);
    }
}
