use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use tempfile::TempDir;

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

/// A file of its own with the given bytes.
fn file(name: &str, bytes: impl AsRef<[u8]>) -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// The documents of such a file, or its error without the folder.
fn read_as(name: &str, bytes: impl AsRef<[u8]>) -> Result<Vec<String>, String> {
    let (folder, path) = file(name, bytes);
    let mut found = Vec::new();
    let push = |document| {
        found.push(document);
        Ok::<_, Error>(())
    };
    let shown = |e: Error| e.to_string().replace(&format!("{}/", folder.path().display()), "");
    documents(&path, "text", push).map_err(shown).map(|()| found)
}

fn refused(name: &str, bytes: impl AsRef<[u8]>) -> String {
    read_as(name, bytes).unwrap_err()
}

#[test]
fn every_form_gives_the_same_documents() {
    let lines = "{\"text\": \"one\"}\r\n\n{\"id\": 3, \"text\": \"two é\\n\"}";
    let array = "\u{feff} [\n{\"text\": \"one\", \"x\": [{\"text\": 1}]}, \" \", \"two \\u00e9\\n\"]\n";
    for (name, text) in [("a.jsonl", lines), ("A.NDJSON", lines), ("a.json", lines), ("a.Json", array)] {
        let marked = format!("\u{feff}{}", text.trim_start_matches('\u{feff}'));
        for (name, bytes) in [
            (name.to_string(), text.as_bytes().to_vec()),
            (name.to_string(), marked.into_bytes()),
            (format!("{name}.gz"), gzip(text.as_bytes())),
            (format!("{name}.ZST"), zstd(text.as_bytes())),
        ] {
            assert_eq!(read_as(&name, bytes).unwrap(), ["one", "two é\n"], "{name}");
        }
    }
}

#[test]
fn plain_text_is_taken_as_it_stands() {
    let text = "\r\n one\0\r\n\u{301}two \n\n";
    for name in ["a.txt", "a.MD", "a", "a.tar.bak"] {
        assert_eq!(read_as(name, text).unwrap(), [text]);
        let (_folder, path) = file(name, format!("\u{feff}{text}"));
        assert_eq!(whole(&path, "text").unwrap(), text);
    }
    assert_eq!(read_as("a.txt.gz", gzip(text.as_bytes())).unwrap(), [text]);
}

#[test]
fn evaluation_joins_documents_with_a_blank_line() {
    let (folder, path) = file("b.jsonl", "{\"body\": \" one\\n\"}\n{\"body\": \"two\"}\n");
    assert_eq!(whole(&path, "body").unwrap(), "one\n\ntwo");
    fs::write(folder.path().join("a.txt"), "first\n").unwrap();
    assert_eq!(whole(folder.path(), "body").unwrap(), "first\n\none\n\ntwo");
}

#[test]
fn packed_members_and_frames_follow_each_other() {
    let twice = |pack: fn(&[u8]) -> Vec<u8>| [pack(b"one "), pack(b"two")].concat();
    assert_eq!(read_as("a.txt.gz", twice(gzip)).unwrap(), ["one two"]);
    // A frame that decoders skip stands between the two: magic number, length, content.
    let skipped = [0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
    let frames = [zstd(b"one "), skipped.to_vec(), zstd(b"two")].concat();
    assert_eq!(read_as("a.txt.zst", frames).unwrap(), ["one two"]);
}

#[test]
fn damaged_packed_files_are_refused() {
    let text: String = (0..5000).map(|i| format!("{i} ")).collect();
    for (name, packed) in [("a.txt.gz", gzip(text.as_bytes())), ("a.txt.zst", zstd(text.as_bytes()))] {
        let end = packed.len();
        let mut spoiled = packed.clone();
        // The checksum: the last bytes of a frame, the last but four of a gzip member.
        spoiled[end - if name.ends_with("gz") { 6 } else { 2 }] ^= 1;
        for bytes in [&packed[..end / 2], &packed[..end - 1], &spoiled, b"no such thing"] {
            let message = refused(name, bytes);
            assert!(message.starts_with(&format!("{name}: damaged ")), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }
}

#[test]
fn wrong_bytes_are_named_by_their_place() {
    let not_utf8 = |byte: usize, line: usize, name: &str| {
        format!("{name}: not UTF-8 at byte {byte} (line {line}): convert the file, for instance with iconv")
    };
    assert_eq!(refused("a.txt", b"one\ntw\xff"), not_utf8(6, 2, "a.txt"));
    assert_eq!(refused("a.txt", b"\xef\xbb\xbfone\n\xe9t"), not_utf8(7, 2, "a.txt"));
    // The end is missing of a character.
    assert_eq!(refused("a.txt", "one é".as_bytes().split_last().unwrap().1), not_utf8(4, 1, "a.txt"));
    assert_eq!(refused("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}"), not_utf8(24, 2, "a.jsonl"));
    assert_eq!(refused("a.json", b"[\n\"\xc0\"]"), not_utf8(3, 2, "a.json"));
    assert_eq!(refused("a.txt.gz", gzip(b"\xff")), not_utf8(0, 1, "a.txt.gz"));
    let utf16 = "a.txt: UTF-16 text: convert it, for instance with iconv -f UTF-16 -t UTF-8";
    assert_eq!(refused("a.txt", b"\xff\xfea\0"), utf16);
    assert_eq!(refused("a.txt", b"\xfe\xff\0a"), utf16);
    assert_eq!(refused("a.txt", gzip(b"a")), "a.txt: gzip data: let the file's name end in .gz");
    assert_eq!(refused("a.jsonl", zstd(b"a")), "a.jsonl: Zstandard data: let the file's name end in .zst");
}

#[test]
fn characters_may_stand_across_blocks() {
    // Odd, so that blocks end in the middle of characters of two, three and four bytes.
    let text = format!("a{}\n", "é€🦙".repeat(60_000));
    assert_eq!(read_as("a.txt", &text).unwrap(), std::slice::from_ref(&text));
    let wrong = [text.as_bytes(), b"b\xff"].concat();
    assert!(refused("a.txt", &wrong).contains(&format!("at byte {} (line 2)", wrong.len() - 1)));
}

#[test]
fn lines_and_elements_without_text_say_why() {
    let advice = "name the one that has the text with --text-field, or data.text_field in a recipe";
    let many = (0..20).map(|i| format!("\"{}\": 0", "n".repeat(i + 50))).collect::<Vec<_>>().join(",");
    for (line, reason) in [
        ("{\"body\": \"a\", \"id\": 1}", format!("no field `text` (it has `body`, `id`): {advice}")),
        ("{}", format!("no field `text` (it has none): {advice}")),
        ("{\"text\": 1}", format!("field `text` is a number, not a string: {advice}")),
        ("{\"text\": null}", format!("field `text` is null, not a string: {advice}")),
        ("{\"text\": [\"a\"]}", format!("field `text` is an array, not a string: {advice}")),
        ("{\"text\": {\"text\": \"a\"}}", format!("field `text` is an object, not a string: {advice}")),
        ("{\"text\": \"a\", \"text\": \"b\"}", "field `text` stands here twice".into()),
        (
            "{\"id\": 1, \"messages\": [{\"role\": \"user\"}]}",
            "chat data (`messages`), which is not read yet, and no field `text`: write each chat as a text".into(),
        ),
        (
            "{\"conversations\": []}",
            "chat data (`conversations`), which is not read yet, and no field `text`: write each chat as a text".into(),
        ),
    ] {
        assert_eq!(refused("a.jsonl", format!("{{\"text\": \"a\"}}\n\n{line}\n")), format!("a.jsonl:3: {reason}"));
        assert_eq!(refused("a.json", format!("[\"a\", {line}]")), format!("a.json: element 2: {reason}"));
    }
    assert_eq!(read_as("a.jsonl", "{\"messages\": [], \"text\": \"a\"}").unwrap(), ["a"]);
    for line in ["[1]", "7", "\"a\"", "null", "true"] {
        let message = refused("a.jsonl", line);
        assert!(message.starts_with("a.jsonl:1: ") && message.ends_with(", where an object is needed"), "{message}");
    }
    assert_eq!(refused("a.json", "[1]"), "a.json: element 1: a number, where an object or a string is needed");
    let message = refused("a.jsonl", format!("{{{many}}}"));
    assert!(message.len() < 900 && message.contains(", …): "), "{message}");
}

#[test]
fn broken_json_is_named_by_line_and_column() {
    let deep = format!("{{\"text\": {}", "[".repeat(100_000));
    for (name, text, start) in [
        ("a.jsonl", "{\"text\": \"a\"}\nno\n", "a.jsonl:2: no JSON object: "),
        ("a.jsonl", "{\"text\": \"a\"} {}", "a.jsonl:1: no JSON object: trailing characters (column 15)"),
        ("a.jsonl", "{\"text\": \"a", "a.jsonl:1: no JSON object: EOF while parsing a string (column 11)"),
        ("a.jsonl", "{\"text\": \"\\ud800\"}", "a.jsonl:1: no JSON object: "),
        ("a.jsonl", &deep, "a.jsonl:1: no JSON object: "),
        ("a.json", "[\"a\",\n\"b\"", "a.json:2: no JSON array: EOF while parsing a list (column 3)"),
        ("a.json", "[\"a\"]\n[\"b\"]", "a.json:2: no JSON array: trailing characters (column 1)"),
        ("a.json", "{\"text\":\n\"a\"}", "a.json:1: no JSON object: "),
    ] {
        let message = refused(name, text);
        assert!(message.starts_with(start), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn files_without_text_and_foreign_formats_are_refused() {
    for (name, text) in [("a.txt", " \n"), ("a.txt", "\u{feff}"), ("a.jsonl", "\n"), ("a.json", "[]"), ("a.json", "")] {
        assert_eq!(refused(name, text), format!("{name}: no text in this file"));
    }
    for name in ["a.parquet", "a.jsonl.xz", "a.PDF", "a.tar.gz"] {
        assert!(refused(name, "a").contains(" is not read as text: write it as .jsonl or .txt"), "{name}");
    }
}

#[test]
fn an_error_of_the_caller_ends_the_reading() {
    for (name, text) in [("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\nno"), ("a.json", "[\"a\", \"b\", no]")] {
        let (_folder, path) = file(name, text);
        let mut seen = 0;
        let error = documents(&path, "text", |document| {
            seen += 1;
            if document == "b" { Err(Error::invalid("other", "enough")) } else { Ok(()) }
        });
        assert_eq!((error.unwrap_err().to_string(), seen), ("other: enough".to_string(), 2));
    }
}

#[test]
fn folders_give_their_text_files_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("sub/.hidden")).unwrap();
    for name in ["b.txt", "a.JSONL", "README.md", "readme.MD", "c.md.gz", "notes.log", ".x.txt", "sub/d.ndjson.zst"] {
        fs::write(at(name), "").unwrap();
    }
    fs::write(at("sub/.hidden/e.txt"), "").unwrap();
    fs::write(at("sub/array.json"), " \n[\"a\"]").unwrap();
    fs::write(at("sub/settings.json"), "{\"a\": 1}").unwrap();
    let found = files(&[folder.path()]).unwrap();
    let names: Vec<_> = found.iter().map(|f| f.strip_prefix(folder.path()).unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["a.JSONL", "b.txt", "c.md.gz", "sub/array.json", "sub/d.ndjson.zst"]);

    let only = [at("sub/.hidden")];
    assert_eq!(files(&only).unwrap(), [at("sub/.hidden/e.txt")]);
    fs::remove_file(at("sub/.hidden/e.txt")).unwrap();
    assert!(files(&only).unwrap_err().to_string().contains(".hidden: no text file in this folder"));
    assert!(files(&["no/such"]).unwrap_err().to_string().starts_with("no/such: "));
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_never_in_a_circle() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::create_dir_all(at("other")).unwrap();
    fs::write(at("a/b/one.txt"), "one").unwrap();
    fs::write(at("other/two.txt"), "two").unwrap();
    symlink(at("a"), at("a/b/up")).unwrap();
    symlink(at("a/b"), at("a/again")).unwrap();
    symlink(at("other"), at("a/c")).unwrap();
    symlink(at("other/two.txt"), at("a/link.txt")).unwrap();
    assert_eq!(files(&[at("a")]).unwrap(), [at("a/again/one.txt"), at("a/c/two.txt"), at("a/link.txt")]);
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.txt");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [&pipe, Path::new("/dev/zero")] {
        let reason =
            "a pipe, socket or device, not a file: write its text to a file, or connect it and name /dev/stdin";
        for message in [files(&[path]).unwrap_err(), whole(path, "text").unwrap_err()] {
            assert_eq!(message.to_string(), format!("{}: {reason}", path.display()));
        }
    }
    assert!(files(&[folder.path()]).unwrap_err().to_string().contains("pipe.txt: a pipe"));
    assert!(documents(folder.path(), "text", |_| Ok::<_, Error>(())).unwrap_err().to_string().contains("a folder"));
}
