//! Strings that end a generated text, found while the text arrives.

/// A filter that lets text through up to the first of several strings.
///
/// ```
/// use bitllama_runtime::text::StopStrings;
///
/// let mut stops = StopStrings::new(["\nUser:"]);
/// assert_eq!(stops.push("Hello\nUs"), ("Hello".to_string(), false));
/// assert_eq!(stops.push("er: hi"), (String::new(), true));
/// ```
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The end of the text so far, which a stop string may begin with.
    held: String,
}

impl StopStrings {
    /// A filter at the start of a text. Empty strings stop nothing.
    pub fn new<T: Into<String>>(stops: impl IntoIterator<Item = T>) -> Self {
        let stops = stops.into_iter().map(Into::into).filter(|stop: &String| !stop.is_empty()).collect();
        Self { stops, held: String::new() }
    }

    /// Takes a piece of text. Returns the text that surely stands in front of every stop string, and whether one has come.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(end) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(end);
            return (std::mem::take(&mut self.held), true);
        }
        let begun = (0..self.held.len()).filter(|at| self.held.is_char_boundary(*at));
        let mut begun = begun.filter(|at| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..])));
        let rest = begun.next().map_or_else(String::new, |at| self.held.split_off(at));
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text that was held back, where nothing follows that would make it a stop string.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that comes through, piece by piece, and whether it was stopped.
    fn through(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut filter = StopStrings::new(stops.iter().copied());
        let mut out = Vec::new();
        for piece in pieces {
            let (text, stopped) = filter.push(piece);
            out.push(text);
            if stopped {
                return (out, true);
            }
        }
        out.push(filter.finish());
        (out, false)
    }

    #[test]
    fn text_comes_at_once_unless_a_stop_may_begin_in_it() {
        assert_eq!(
            through(&["END"], &["a", "bE", "Nx", "E"]),
            (vec!["a".into(), "b".into(), "ENx".into(), "".into(), "E".into()], false)
        );
        assert_eq!(through(&["END"], &["a E", "N", "D b"]), (vec!["a ".into(), "".into(), "".into()], true));
        assert_eq!(through(&[], &["a", "b"]), (vec!["a".into(), "b".into(), "".into()], false));
    }

    #[test]
    fn the_first_of_several_stops_ends_the_text() {
        assert_eq!(through(&["b", "ab"], &["xab"]), (vec!["x".into()], true));
        // A stop that begins within another's beginning.
        assert_eq!(through(&["aab"], &["aa", "aab"]), (vec!["".into(), "aa".into()], true));
        assert_eq!(through(&["é!"], &["caf", "é", "!"]), (vec!["caf".into(), "".into(), "".into()], true));
        assert_eq!(through(&[""], &["a"]), (vec!["a".into(), "".into()], false));
    }
}
