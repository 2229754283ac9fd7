//! The promises of outputs: nothing of the user's is lost, and a kill at any step is made good by the next start.

use std::fs;
use std::path::Path;

use super::disk::faults::dying_at;
use super::disk::{entries, parent};
use super::*;
use crate::atomic::{write_bytes, write_folder};

/// Writes a model of two files, one of them deeper, both with this content.
fn write_model(path: &Path, content: &str) -> Result<()> {
    write_folder(path, Kind::Model, |folder| {
        write_bytes(&folder.join("one"), content.as_bytes())?;
        create_folders(&folder.join("deep"))?;
        write_bytes(&folder.join("deep/two"), content.as_bytes())
    })
}

/// The content of a model's files; `None` if there is no model, and a panic if it is not whole.
fn model(path: &Path) -> Option<String> {
    let one = fs::read_to_string(path.join("one")).ok()?;
    assert_eq!(fs::read_to_string(path.join("deep/two")).unwrap(), one);
    assert_eq!(foreign(path, &[]).unwrap(), None);
    Some(one)
}

fn names(folder: &Path) -> Vec<String> {
    let names =
        entries(folder).unwrap().into_iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_string());
    names.collect()
}

fn error<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_folder_is_replaced_whole_or_not_at_all() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("deep/model");
    write_model(&path, "1").unwrap();
    write_model(&path, "2").unwrap();
    assert_eq!(model(&path).unwrap(), "2");
    let failed = write_folder(&path, Kind::Model, |folder| {
        write_bytes(&folder.join("three"), b"3")?;
        Err(Error::invalid("three", "no"))
    });
    assert!(failed.is_err());
    assert_eq!(model(&path).unwrap(), "2");
    assert_eq!(names(parent(&path)), ["model"]);
    // A first write that fails leaves no folders either.
    let other = root.path().join("a/b/model");
    assert!(write_folder(&other, Kind::Model, |_| Err(Error::invalid("x", "no"))).is_err());
    assert_eq!(names(root.path()), ["deep"]);
}

#[test]
fn a_folder_with_anything_else_in_it_stays_and_the_first_is_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("model");
    let refused = |expected: &str| {
        let before = names(&path);
        let message = error(write_model(&path, "new"));
        assert!(message.contains(expected), "{message}");
        assert_eq!(names(&path), before);
        assert_eq!(names(root.path()), ["model"]);
    };
    // Nothing but a name that models have.
    fs::create_dir(&path).unwrap();
    fs::write(path.join("one"), "mine").unwrap();
    refused("model/one: not on record as written by this program");
    fs::remove_file(path.join("one")).unwrap();
    // An empty folder is nobody's loss.
    write_model(&path, "1").unwrap();
    fs::write(path.join("deep/notes.txt"), "mine").unwrap();
    refused("deep/notes.txt: not on record");
    fs::remove_file(path.join("deep/notes.txt")).unwrap();
    fs::create_dir(path.join("empty")).unwrap();
    refused("model/empty: not on record");
    fs::remove_dir(path.join("empty")).unwrap();
    // Of the same size, and at another time.
    fs::write(path.join("deep/two"), "2").unwrap();
    refused("deep/two: has changed since this program wrote it");
    fs::write(path.join("deep/two"), "1").unwrap();
    write_model(&path, "2").unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("one", path.join("a")).unwrap();
        refused("model/a: not on record");
        fs::remove_file(path.join("a")).unwrap();
    }
    // Another kind of this program's own.
    let message = error(claim_folder(&path, Kind::Artifact));
    assert!(message.contains("holds a model, which an artifact does not replace"), "{message}");
    assert!(error(claim_growing(&path, Kind::Run)).contains("holds a model, not a run"));
    assert!(error(claim_folder(&path.join("one"), Kind::Model)).contains("a file stands here"));
    // A copy has other times, and counts.
    let copy = root.path().join("copy");
    fs::create_dir_all(copy.join("deep")).unwrap();
    for file in [RECORD, "one", "deep/two"] {
        fs::write(copy.join(file), fs::read(path.join(file)).unwrap()).unwrap();
    }
    write_model(&copy, "3").unwrap();
    assert_eq!((model(&copy).unwrap(), model(&path).unwrap()), ("3".into(), "2".into()));
}

/// Kills `work` at each of its steps in turn, after `prepare` in a fresh folder; `check` sees that folder before and after a
/// restart.
fn at_every_step(
    prepare: impl Fn(&Path),
    work: impl Fn(&Path) -> Result<()>,
    check: impl Fn(&Path, /* restarted */ bool),
) -> usize {
    for n in 0.. {
        let root = tempfile::tempdir().unwrap();
        prepare(root.path());
        let (result, died) = dying_at(n, || work(root.path()));
        if !died && result.is_ok() {
            return n;
        }
        // Best-effort steps may die without an error, at the end of the work.
        check(root.path(), false);
        work(root.path()).unwrap();
        check(root.path(), true);
    }
    unreachable!()
}

#[test]
fn a_kill_at_any_step_of_a_replacement_is_finished_or_undone() {
    let steps = at_every_step(
        |root| write_model(&root.join("model"), "old").unwrap(),
        |root| write_model(&root.join("model"), "new"),
        |root, restarted| {
            let path = root.join("model");
            if restarted {
                assert_eq!((model(&path).as_deref(), names(root)), (Some("new"), vec!["model".to_string()]));
                return;
            }
            // Whole, or aside under a name that the next start finds.
            let found = model(&path);
            let aside =
                || names(root).into_iter().find(|name| name.ends_with(".old~")).map(|name| model(&root.join(name)));
            match found {
                Some(content) => assert!(content == "old" || content == "new"),
                None => assert_eq!(aside().flatten().as_deref(), Some("old")),
            }
            // A start that comes no further than its claim leaves one of both, and nothing else.
            drop(claim_folder(&path, Kind::Model).unwrap());
            assert!(model(&path).is_some());
            assert_eq!(names(root), ["model"]);
        },
    );
    assert!(steps > 25, "{steps} steps");
}

#[test]
fn a_kill_at_any_step_of_a_first_write_leaves_a_model_or_nothing() {
    at_every_step(
        |_| {},
        |root| write_model(&root.join("a/model"), "new"),
        |root, restarted| match model(&root.join("a/model")) {
            Some(content) => assert_eq!(content, "new"),
            None => assert!(!restarted && !root.join("a/model").exists()),
        },
    );
    at_every_step(
        |root| write_bytes(&root.join("file"), b"old").unwrap(),
        |root| recover(root).and_then(|()| write_bytes(&root.join("file"), b"new")),
        |root, restarted| {
            let content = fs::read(root.join("file")).unwrap();
            assert!(content == b"new" || (content == b"old" && !restarted));
            assert!(!restarted || names(root) == ["file"]);
        },
    );
}

#[test]
fn a_kill_at_any_step_of_a_file_and_one_beside_it_leaves_nothing_unfinished() {
    at_every_step(
        |_| {},
        |root| {
            let _claim = claim_file(&root.join("a/text"))?;
            write_bytes(&root.join("a/text.origin.json"), b"{}")?;
            write_bytes(&root.join("a/text"), b"new")
        },
        |root, restarted| assert!(!restarted || names(&root.join("a")) == ["text", "text.origin.json"]),
    );
}

/// A run in little: starts anew in its folder, writes what it keeps, a log and a checkpoint.
fn run(root: &Path, content: &str) -> Result<()> {
    let path = root.join("run");
    let _claim = claim_growing(&path, Kind::Run)?;
    let files = Growing::new(&path, Kind::Run);
    assert_eq!(files.foreign(&[path.join("cache")])?, None);
    files.clear(&[path.join("cache")])?;
    create_folders(&path.join("cache"))?;
    write_bytes(&path.join("cache/tokens"), b"kept")?;
    files.write("run.json", content.as_bytes())?;
    files.log("metrics.jsonl")?;
    write_bytes(&path.join("metrics.jsonl"), content.as_bytes())?;
    files.subfolder("checkpoints/step-2")?;
    write_folder(&path.join("checkpoints/step-2"), Kind::Checkpoint, |folder| write_bytes(&folder.join("state"), b"1"))
}

#[test]
fn a_kill_at_any_step_of_a_run_leaves_nothing_foreign() {
    let steps = at_every_step(
        |root| run(root, "old").unwrap(),
        |root| run(root, "new"),
        |root, restarted| {
            let path = root.join("run");
            assert_eq!(foreign(&path, &[path.join("cache")]).unwrap(), None, "{:?}", names(&path));
            assert_eq!(fs::read(path.join("cache/tokens")).unwrap(), b"kept");
            if restarted {
                assert_eq!(names(&path), [RECORD, "cache", "checkpoints", "metrics.jsonl", "run.json"]);
                assert_eq!(names(&path.join("checkpoints")), ["step-2"]);
                assert_eq!(names(root), ["run"]);
                assert_eq!(fs::read(path.join("run.json")).unwrap(), b"new");
            }
        },
    );
    assert!(steps > 50, "{steps} steps");
}

#[test]
fn a_kill_at_any_step_of_a_removal_leaves_the_folder_whole_or_gone() {
    at_every_step(
        |root| write_model(&root.join("model"), "old").unwrap(),
        |root| {
            if root.join("model").exists() { remove_folder(&root.join("model"), Kind::Model) } else { recover(root) }
        },
        |root, restarted| {
            let found = model(&root.join("model"));
            assert!(found.is_none() || (found.unwrap() == "old" && !restarted));
            assert!(!restarted || names(root).is_empty(), "{:?}", names(root));
        },
    );
}

#[test]
fn a_run_takes_nothing_of_the_users() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("run");
    run(root.path(), "1").unwrap();
    let files = Growing::new(&path, Kind::Run);
    let first = |expected: &str, changed: bool| {
        let found = files.foreign(&[path.join("cache")]).unwrap().unwrap();
        assert_eq!((found.path.strip_prefix(&path).unwrap(), found.changed), (Path::new(expected), changed));
        let before = names(&path);
        assert!(error(files.clear(&[path.join("cache")])).contains(expected));
        assert_eq!(names(&path), before);
    };
    fs::write(path.join("checkpoints/step-2/notes.txt"), "mine").unwrap();
    first("checkpoints/step-2/notes.txt", false);
    assert!(error(remove_folder(&path.join("checkpoints/step-2"), Kind::Checkpoint)).contains("notes.txt"));
    fs::remove_file(path.join("checkpoints/step-2/notes.txt")).unwrap();
    fs::write(path.join("recipe.toml"), "mine").unwrap();
    first("recipe.toml", false);
    assert!(error(files.write("recipe.toml", b"ours")).contains("recipe.toml: not on record"));
    assert!(error(files.log("recipe.toml")).contains("recipe.toml: not on record"));
    fs::remove_file(path.join("recipe.toml")).unwrap();
    fs::write(path.join("run.json"), "mine").unwrap();
    first("run.json", true);
    assert!(error(files.write("run.json", b"ours")).contains("run.json: has changed since"));
    files.rewrite("run.json", b"computed again").unwrap();
    // Without `keep`, the cache is foreign too.
    assert_eq!(files.foreign(&[]).unwrap().unwrap().path, path.join("cache/tokens"));
    files.clear(&[path.join("cache")]).unwrap();
    assert_eq!(names(&path), [RECORD, "cache"]);
}

#[test]
fn a_record_that_a_kill_cut_short_still_counts() {
    let root = tempfile::tempdir().unwrap();
    let files = Growing::new(root.path(), Kind::Run);
    files.write("a", b"1").unwrap();
    let path = root.path().join(RECORD);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], b"{\"file\":{\"path\":\"b\""].concat()).unwrap();
    files.write("c", b"3").unwrap();
    assert_eq!(files.foreign(&[]).unwrap(), None);
    fs::write(&path, String::from_utf8(whole).unwrap().replace("\"version\":1", "\"version\":2")).unwrap();
    assert!(error(files.foreign(&[])).contains("version 2 of the record is newer than 1"));
}

#[cfg(unix)]
#[test]
fn a_link_is_followed_and_stays() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let (target, link) = (root.path().join("disk/model"), root.path().join("link"));
    symlink(&target, &link).unwrap();
    let message = error(write_model(&link, "1"));
    assert!(message.contains("link: a link to ") && message.contains("remove the link"), "{message}");
    assert!(!target.exists());
    fs::create_dir_all(&target).unwrap();
    write_model(&link, "1").unwrap();
    write_model(&link, "2").unwrap();
    assert_eq!((model(&target).unwrap(), fs::read_link(&link).unwrap()), ("2".into(), target.clone()));
    assert_eq!(
        (names(root.path()), names(parent(&target))),
        (vec!["disk".into(), "link".into()], vec!["model".into()])
    );
    let file = root.path().join("file");
    fs::write(target.join("../text"), "old").unwrap();
    symlink("disk/text", &file).unwrap();
    write_bytes(&file, b"new").unwrap();
    assert!(fs::read(root.path().join("disk/text")).unwrap() == b"new" && file.is_symlink());
}

#[test]
fn inputs_are_not_written_over() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    fs::create_dir_all(path("models/a")).unwrap();
    fs::write(path("models/a/weights"), "1").unwrap();
    let of = |output: &str, input: &Path| apart(&path(output), [("--model", input)]);
    for (output, input) in
        [("models/a", "models/a"), ("models", "models/a/weights"), ("models/../models/a", "models/a")]
    {
        let message = error(of(output, &path(input)));
        assert!(message.contains("`--model`") && message.contains("is not written over"), "{message}");
    }
    of("models/b", &path("models/a")).unwrap();
    of("models/a/new", &path("models/a")).unwrap();
    of("models/a", Path::new("org/name")).unwrap();
    #[cfg(unix)]
    {
        // A snapshot of the hub's cache links to where its files are.
        fs::create_dir_all(path("snapshot")).unwrap();
        std::os::unix::fs::symlink(path("models/a/weights"), path("snapshot/weights")).unwrap();
        assert!(error(of("models/a", &path("snapshot"))).contains("snapshot lies here"));
        std::os::unix::fs::symlink(path("models/a"), path("link")).unwrap();
        assert!(error(of("link", &path("models/a"))).contains("lies here"));
    }
}

#[test]
fn two_writers_of_a_folder_come_one_after_the_other_or_one_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("model");
    for round in 0..20 {
        let contents = [format!("{round}a"), format!("{round}b")];
        let results = std::thread::scope(|scope| {
            let writers = contents.each_ref().map(|content| scope.spawn(|| write_model(&path, content)));
            writers.map(|writer| writer.join().unwrap().map_err(|e| e.to_string()))
        });
        for refused in results.iter().filter_map(|result| result.as_ref().err()) {
            assert!(refused.contains("is writing here"), "{refused}");
        }
        let written: Vec<_> = contents.iter().zip(&results).filter(|(_, result)| result.is_ok()).collect();
        let found = model(&path).unwrap();
        assert!(written.iter().any(|(content, _)| **content == found), "{results:?} {found}");
        assert_eq!(names(root.path()), ["model"]);
    }
}
