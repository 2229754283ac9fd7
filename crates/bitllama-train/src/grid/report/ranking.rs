//! The methods of a scheme against its best one: how far behind, and how sure that is.
//!
//! Students of one teacher find the same chunks of a text hard, so their difference in the same chunks scatters far less than the
//! perplexity of either. What another seed would have made of a run is taken from those methods of the scheme that have several.

use super::view::{Entry, Figure, View};

/// One method on one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Place<'a> {
    /// Which.
    pub entry: &'a Entry,
    /// Fraction of the best one's perplexity that its own lies above it, with its standard error if it is known; `None` of the best.
    pub behind: Option<Figure>,
}

impl Place<'_> {
    /// Whether it is behind by more than twice the error; `None` if that is not known.
    pub fn is_clear(&self) -> Option<bool> {
        let Figure { value, spread } = self.behind?;
        Some(value > 2.0 * spread?)
    }
}

/// The methods of a scheme that have been scored on a text, the best first.
pub fn ranking<'a>(view: &'a View, scheme: &str, text: &str) -> Vec<Place<'a>> {
    let ranked = view.ranked(scheme, text);
    let Some(best) = ranked.first().copied() else { return vec![] };
    let of_a_seed = seed_variance(&ranked, text);
    let place = |(index, entry): (usize, &'a Entry)| {
        let behind = (index > 0).then(|| behind(entry, best, text, of_a_seed)).flatten();
        Place { entry, behind }
    };
    ranked.iter().copied().enumerate().map(place).collect()
}

/// Variance of a run's mean negative log likelihood over seeds, of all methods with several together; 0 if there are none.
fn seed_variance(entries: &[&Entry], text: &str) -> f64 {
    let (mut squares, mut freedom) = (0.0, 0);
    for runs in entries.iter().filter_map(|entry| Some(&entry.texts.get(text)?.nll)) {
        let mean = runs.iter().sum::<f64>() / runs.len() as f64;
        squares += runs.iter().map(|nll| (nll - mean).powi(2)).sum::<f64>();
        freedom += runs.len().saturating_sub(1);
    }
    if freedom > 0 { squares / freedom as f64 } else { 0.0 }
}

fn behind(entry: &Entry, best: &Entry, text: &str, of_a_seed: f64) -> Option<Figure> {
    let (own, its) = (entry.texts.get(text)?, best.texts.get(text)?);
    let ratio = own.perplexity.value / its.perplexity.value;
    let differences: Vec<f64> = own.chunk_nll.iter().zip(&its.chunk_nll).map(|(own, its)| own - its).collect();
    let paired = differences.len() > 1 && own.chunk_nll.len() == its.chunk_nll.len();
    let error = paired.then(|| {
        let count = differences.len() as f64;
        let mean = differences.iter().sum::<f64>() / count;
        let of_text = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (count - 1.0) / count;
        // Rounding alone comes out the same with every seed.
        let of_seeds = |entry: &Entry| if entry.trained() { of_a_seed / entry.seeds as f64 } else { 0.0 };
        ratio * (of_text + of_seeds(entry) + of_seeds(best)).sqrt()
    });
    Some(Figure::new(ratio - 1.0, error))
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::grid::results::Cell;

    const TEXT: &str = "wikitext-2";

    #[test]
    fn chunks_are_compared_with_each_other() {
        let mut results = sample::results();
        results.cells.retain(|cell| cell.seed == 0);
        // The same perplexity but for 1 %, in every chunk: no doubt, however far chunks scatter.
        for (index, cell) in results.cells.iter_mut().filter(|cell| cell.scheme == "int4").enumerate() {
            let found = &mut cell.texts[TEXT];
            let more = 0.01 * index as f64;
            found.student.perplexity = 20.0 * more.exp();
            found.chunk_nll = (0..50).map(|chunk| 3.0 + (chunk as f64).sin() + more).collect();
        }
        let view = View::new(&results);
        let places = ranking(&view, "int4", TEXT);
        assert_eq!((places.len(), places[0].behind, places[0].is_clear()), (4, None, None));
        let next = places[1].behind.unwrap();
        assert!((next.value - (0.01f64.exp() - 1.0)).abs() < 1e-9 && next.spread.unwrap() < 1e-9, "{next:?}");
        assert_eq!(places[1].is_clear(), Some(true));
        // The same difference in the mean, of chunks that disagree.
        let cell = results.cells.iter_mut().filter(|cell| cell.scheme == "int4").nth(1).unwrap();
        let nll = &mut cell.texts[TEXT].chunk_nll;
        nll.iter_mut().enumerate().for_each(|(chunk, nll)| *nll += if chunk % 2 == 0 { 0.5 } else { -0.5 });
        let view = View::new(&results);
        let next = ranking(&view, "int4", TEXT)[1].clone();
        // Standard deviation 0.505 over 50 chunks.
        assert!((next.behind.unwrap().spread.unwrap() - 0.0721).abs() < 1e-3, "{:?}", next.behind);
        assert_eq!(next.is_clear(), Some(false));
    }

    #[test]
    fn seeds_count_as_well() {
        let mut results = sample::results();
        let set = |cell: &mut Cell, nll: f64| {
            let found = &mut cell.texts[TEXT];
            (found.student.nll, found.student.perplexity, found.chunk_nll) = (nll, nll.exp(), vec![nll; 10]);
        };
        results.cells.retain(|cell| cell.scheme == "int4" && cell.method.starts_with("QAT"));
        results.cells.retain(|cell| cell.method.contains("entropy") || cell.seed == 0);
        let [three @ .., one] = results.cells.as_mut_slice() else { panic!("no cells") };
        three.iter_mut().zip([2.9, 3.0, 3.1]).for_each(|(cell, nll)| set(cell, nll));
        set(one, 2.0);
        let view = View::new(&results);
        let places = ranking(&view, "int4", TEXT);
        let perplexity = |place: usize| places[place].entry.texts[TEXT].perplexity.value;
        // 0.1 a run: three of these, one of the best.
        let expected = perplexity(1) / perplexity(0) * (0.01f64 / 3.0 + 0.01).sqrt();
        let behind = places[1].behind.unwrap();
        assert!((behind.spread.unwrap() - expected).abs() < 1e-9, "{behind:?}");
    }

    #[test]
    fn without_chunks_nothing_is_claimed() {
        let mut results = sample::results();
        results.cells.iter_mut().for_each(|cell| cell.texts[TEXT].chunk_nll.clear());
        let view = View::new(&results);
        let places = ranking(&view, "int4", TEXT);
        assert!(places[1].behind.unwrap().value > 0.0 && places[1].is_clear().is_none());
        assert!(ranking(&view, "nothing", TEXT).is_empty());
    }
}
