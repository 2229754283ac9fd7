//! Remarks of readers to the user: files that contradict themselves, and what was assumed of files that leave something out.
//!
//! A program says with [`listen`] where they go; a library that is embedded elsewhere stays silent.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

static LISTENER: OnceLock<fn(&str)> = OnceLock::new();
static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Sends every remark to `listener`, each once in the life of the process. The first call of a process counts.
pub fn listen(listener: fn(&str)) {
    LISTENER.get_or_init(|| listener);
}

/// Tells a remark about `path`, unless it was told before.
pub fn tell(path: &Path, remark: &str) {
    let Some(listener) = LISTENER.get() else { return };
    let line = format!("{}: {remark}", path.display());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if !told.contains(&line) {
        listener(&line);
        told.insert(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());

    #[test]
    fn each_remark_is_told_once() {
        listen(|line| HEARD.lock().unwrap().push(line.to_string()));
        listen(|_| panic!("the first listener counts"));
        let path = Path::new("notes-test");
        ["a", "b", "a"].iter().for_each(|remark| tell(path, remark));
        let heard = HEARD.lock().unwrap();
        let ours: Vec<&String> = heard.iter().filter(|line| line.starts_with("notes-test")).collect();
        assert_eq!(ours, ["notes-test: a", "notes-test: b"]);
    }
}
