use std::io::Write;

use super::super::BlockFormat;
use super::super::testing::{self, Writer, file, string, tiny};
use super::*;

fn error(writer: &Writer) -> String {
    let (_folder, path) = writer.file();
    let message = super::super::open(&path).err().expect("must not open").to_string();
    assert!(message.contains("model.gguf") && !message.contains('\n'), "{message}");
    message
}

#[test]
fn metadata_of_every_type_is_read() {
    let mut writer = Writer::new();
    writer.set("u8", 0, vec![200]).set("i8", 1, vec![0xff]).set("u16", 2, vec![1, 1]).set("i16", 3, vec![0xfe, 0xff]);
    writer.u32("u32", 7).set("i32", 5, (-9i32).to_le_bytes().into()).f32("f32", 0.5).bool("bool", true);
    writer.text("text", "é").set("u64", 10, (1u64 << 40).to_le_bytes().into());
    writer.set("i64", 11, (-1i64).to_le_bytes().into()).set("f64", 12, 0.1f64.to_le_bytes().into());
    writer.texts("texts", &["a", ""]).i32s("i32s", &[-1, 2]).f32s("f32s", &[1.5]);
    let (_folder, path) = writer.file();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.whole("u8").unwrap(), Some(200));
    assert_eq!(gguf.get("i8"), Some(&Value::Signed(-1)));
    assert_eq!(gguf.whole("u16").unwrap(), Some(257));
    assert_eq!(gguf.get("i16"), Some(&Value::Signed(-2)));
    assert_eq!(gguf.number("u32").unwrap(), Some(7.0));
    assert_eq!(gguf.number("i32").unwrap(), Some(-9.0));
    assert_eq!(gguf.number("f32").unwrap(), Some(0.5));
    assert_eq!(gguf.flag("bool").unwrap(), Some(true));
    assert_eq!(gguf.text("text").unwrap(), Some("é"));
    assert_eq!(gguf.whole("u64").unwrap(), Some(1 << 40));
    assert_eq!(gguf.get("i64"), Some(&Value::Signed(-1)));
    assert_eq!(gguf.number("f64").unwrap(), Some(0.1));
    assert_eq!(gguf.array("texts").unwrap(), Some(&Array::Strings(vec!["a".into(), "".into()])));
    assert_eq!(gguf.array("i32s").unwrap(), Some(&Array::Integers(vec![-1, 2])));
    assert_eq!(gguf.array("f32s").unwrap(), Some(&Array::Floats(vec![1.5])));
    assert_eq!(gguf.whole("absent").unwrap(), None);
    assert!(gguf.whole("text").unwrap_err().to_string().contains("metadata text is not a whole number"));
}

#[test]
fn version_2_is_read_and_others_are_refused() {
    let mut writer = tiny();
    writer.version = 2;
    let (_folder, path) = writer.file();
    super::super::open(&path).unwrap();
    writer.version = 1;
    assert!(error(&writer).contains("version 1"));
    writer.version = 3u32.swap_bytes();
    assert!(error(&writer).contains("big-endian"));
    let (_folder, path) = file(b"PK\x03\x04 something else");
    assert!(Gguf::open(&path).err().unwrap().to_string().contains("the magic GGUF is missing"));
}

#[test]
fn alignment_is_that_of_the_metadata() {
    let mut writer = Writer::new();
    writer.u32("general.alignment", 8).tensor("a", &[2], &[1.0, 2.0]);
    let mut bytes = writer.bytes();
    // The writer aligns to 32: header and lists are kept, the data put closer behind them.
    let listed = 4 + 4 + 8 + 8 + (8 + 17 + 4 + 4) + (8 + 1 + 4 + 8 + 4 + 8);
    bytes.truncate(listed);
    bytes.resize(usize::next_multiple_of(listed, 8), 0);
    bytes.extend([1f32, 2.0].iter().flat_map(|v| v.to_le_bytes()));
    let (_folder, path) = file(&bytes);
    let gguf = Gguf::open(&path).unwrap();
    let tensor = gguf.tensor("a").unwrap();
    assert_eq!(BlockFormat::F32.dequantize(gguf.bytes(tensor)), [1.0, 2.0]);
    writer.u32("general.alignment", 24);
    assert!(error(&writer).contains("general.alignment"));
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let bytes = tiny().bytes();
    let (_folder, path) = file(&bytes);
    super::super::open(&path).unwrap();
    // One file, cut shorter and shorter.
    let handle = std::fs::File::options().write(true).open(&path).unwrap();
    for length in (0..bytes.len()).rev() {
        handle.set_len(length as u64).unwrap();
        let message =
            super::super::open(&path).err().unwrap_or_else(|| panic!("opened with {length} bytes")).to_string();
        assert!(message.contains("cut"), "{length}: {message}");
    }
}

#[test]
fn flipped_bits_never_panic() {
    let bytes = tiny().bytes();
    let (_folder, path) = file(&bytes);
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let list = testing::tiny_config();
    for round in 0..3000 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + round % 4 {
            // Mostly where the metadata are: the data are any bytes.
            let place = random(if round % 8 == 0 { bytes.len() } else { 1600 });
            damaged[place] = if round % 2 == 0 { damaged[place] ^ (1 << random(8)) } else { random(256) as u8 };
        }
        // In place: cutting a file to nothing and writing it again makes the disk wait.
        std::fs::File::options().write(true).open(&path).unwrap().write_all(&damaged).unwrap();
        if let Ok(model) = super::super::open(&path) {
            for spec in bitllama_core::weights::specs(&list) {
                // The shape may have been hit: an error then.
                drop(model.weights.read(&spec));
            }
        }
    }
}

#[test]
fn huge_counts_and_sizes_are_refused_before_allocating() {
    let mut bytes = tiny().bytes();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let (_folder, path) = file(&bytes);
    assert!(Gguf::open(&path).err().unwrap().to_string().contains("tensors should be 18446744073709551615"));

    let mut writer = tiny();
    writer.set("long", 8, (u64::MAX - 3).to_le_bytes().into());
    assert!(error(&writer).contains("cut or damaged: long"));
    let mut writer = tiny();
    let array = [&8u32.to_le_bytes()[..], &(1u64 << 50).to_le_bytes()].concat();
    writer.set("list", 9, array);
    assert!(error(&writer).contains("list should be 1125899906842624"));
    let mut writer = tiny();
    writer.tensors[0].1 = vec![1 << 40, 1 << 40];
    assert!(error(&writer).contains("ends beyond"));
    let mut writer = tiny();
    writer.u32("llama.block_count", 4000);
    assert!(error(&writer).contains("too few for llama.block_count = 4000"));
}

#[test]
fn each_fault_of_structure_is_named() {
    let mut writer = tiny();
    writer.metadata.push(("llama.block_count".into(), 4, vec![1, 0, 0, 0]));
    assert!(error(&writer).contains("llama.block_count comes twice"));
    let mut writer = tiny();
    writer.tensors.push(writer.tensors[0].clone());
    assert!(error(&writer).contains("token_embd.weight comes twice"));
    let mut writer = tiny();
    writer.set("odd", 13, vec![0; 8]);
    assert!(error(&writer).contains("odd has the unknown type 13"));
    let mut writer = tiny();
    writer.set("odd", 7, vec![2]);
    assert!(error(&writer).contains("bool 2"));
    let mut writer = tiny();
    writer.set("odd", 9, [&9u32.to_le_bytes()[..], &0u64.to_le_bytes()].concat());
    assert!(error(&writer).contains("array of the unsupported type 9"));
    let mut writer = tiny();
    let mut bad = string("ab");
    bad[8] = 0xff;
    writer.set("odd", 8, bad);
    assert!(error(&writer).contains("not UTF-8"));
    let mut writer = tiny();
    writer.tensors[0].1 = vec![1; 5];
    assert!(error(&writer).contains("5 dimensions"));
    let mut writer = tiny();
    writer.tensors[0].2 = BlockFormat::Q8_0.id();
    assert!(error(&writer).contains("rows of 8 are no multiple of Q8_0's 32"));
}

#[test]
fn tensors_that_share_bytes_are_refused_by_name() {
    // The list of tensors ends where the data start, so the offsets stand in front of it.
    let writer = tiny();
    let at = |bytes: &[u8], name: &str| {
        let name = string(name);
        let start = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len();
        let dimensions = bytes[start] as usize;
        start + 4 + 8 * dimensions + 4
    };
    let with = |name: &str, offset: u64| {
        let mut bytes = writer.bytes();
        let place = at(&bytes, name);
        bytes[place..place + 8].copy_from_slice(&offset.to_le_bytes());
        let (_folder, path) = file(&bytes);
        Gguf::open(&path).err().expect("must not open").to_string()
    };
    let shared = with("blk.0.attn_norm.weight", 0);
    let expected = "tensors blk.0.attn_norm.weight and token_embd.weight lie on the same bytes";
    assert!(shared.ends_with(expected), "{shared}");
    let shifted = with("blk.0.attn_norm.weight", 8);
    assert!(shifted.contains("blk.0.attn_norm.weight is at offset 8, no multiple of the alignment 32"), "{shifted}");
    let wrapped = with("blk.0.attn_norm.weight", u64::MAX - 31);
    assert!(wrapped.contains("ends beyond"), "{wrapped}");
}

/// The tiny model in parts: metadata and some tensors, the rest.
fn parts(first: usize) -> [Writer; 2] {
    let whole = tiny();
    let mut rest = Writer::new();
    rest.tensors = whole.tensors[first..].to_vec();
    let mut head = whole.clone();
    head.tensors.truncate(first);
    let mut parts = [head, rest];
    for (number, part) in (0u16..).zip(&mut parts) {
        part.set("split.no", 2, number.to_le_bytes().into()).set("split.count", 2, 2u16.to_le_bytes().into());
        part.set("split.tensors.count", 5, (whole.tensors.len() as i32).to_le_bytes().into());
    }
    parts
}

/// Writes parts under the names of their set and opens the one of that number.
fn open_part(parts: &[Writer; 2], number: usize) -> Result<crate::Model> {
    let folder = tempfile::tempdir().unwrap();
    let names = super::super::part_names("m-00001-of-00002.gguf").unwrap();
    for (part, name) in parts.iter().zip(&names) {
        std::fs::write(folder.path().join(name), part.bytes()).unwrap();
    }
    crate::model::open(&folder.path().join(&names[number]))
}

#[test]
fn a_split_model_is_opened_by_any_of_its_parts() {
    let (_folder, path) = tiny().file();
    let whole = super::super::open(&path).unwrap();
    for first in [0, 4] {
        for given in [0, 1] {
            let model = open_part(&parts(first), given).unwrap();
            assert_eq!(model.config, whole.config);
            for spec in bitllama_core::weights::specs(&whole.config) {
                assert_eq!(model.weights.read(&spec).unwrap(), whole.weights.read(&spec).unwrap(), "{}", spec.name);
            }
            assert_eq!(model.weights.stored_bytes(), whole.weights.stored_bytes());
        }
    }
}

#[test]
fn parts_that_make_no_model_are_refused() {
    let error = |spoil: fn(&mut [Writer; 2])| {
        let mut parts = parts(4);
        spoil(&mut parts);
        open_part(&parts, 0).err().expect("must not open").to_string()
    };
    let twice = error(|[first, second]| second.tensors.push(first.tensors[0].clone()));
    let expected = |message: &str, end: &str| assert!(message.ends_with(end), "{message}");
    assert!(twice.contains("m-00002-of-00002.gguf: tensor token_embd.weight is in "), "{twice}");
    expected(&twice, "m-00001-of-00002.gguf as well");
    let missing = error(|[_, second]| drop(second.tensors.pop()));
    expected(&missing, "split.tensors.count = 11, but the 2 parts have 10 tensors");
    let other = error(|[_, second]| _ = second.set("split.no", 2, vec![0, 0]));
    expected(&other, "m-00002-of-00002.gguf: is not the part of m-00001-of-00002.gguf that its name says");
    let whole = error(|[_, second]| _ = second.remove("split.count"));
    expected(&whole, "is not the part of m-00001-of-00002.gguf that its name says");
    let beyond = error(|[first, _]| _ = first.set("split.no", 2, vec![2, 0]));
    expected(&beyond, "split.no = 2 is no part of split.count = 2");

    let [first, _] = parts(4);
    let (_folder, path) = first.file();
    let named = Gguf::open(&path).err().unwrap().to_string();
    expected(&named, "model.gguf: is part 1 of 2 of a split GGUF; its name must end in -00001-of-00002.gguf");
    let path = path.with_file_name("m-00001-of-00002.gguf");
    std::fs::write(&path, first.bytes()).unwrap();
    let missing = Gguf::open(&path).err().unwrap().to_string();
    expected(&missing, "m-00002-of-00002.gguf: is missing: part 2 of 2 of a split GGUF");
}

#[test]
fn names_of_parts_are_those_of_the_splitter() {
    let names = super::super::part_names("a-of-b-00002-of-00003.gguf").unwrap();
    let numbers = ["a-of-b-00001-of-00003.gguf", "a-of-b-00002-of-00003.gguf", "a-of-b-00003-of-00003.gguf"];
    assert_eq!(names, numbers);
    for other in ["m.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf", "m-1-of-2.gguf", "m-00001-of-00002.bin"] {
        assert_eq!(super::super::part_names(other), None, "{other}");
    }
}
