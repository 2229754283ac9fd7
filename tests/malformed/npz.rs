//! NumPy's archives and arrays.

use bitllama_formats::npz::{Npz, parse};

use super::Group;
use super::edit::{good, write};

/// An array with a header of version 1.0.
fn array(header: &str, data: &[u8]) -> Vec<u8> {
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// Headers of an array of eight bytes.
const HEADERS: [(&str, &str); 22] = [
    ("empty header", ""),
    ("no dictionary", "hello"),
    ("dictionary that does not end", "{'descr': '<f4'"),
    ("no shape", "{'descr': '<f4', 'fortran_order': False}"),
    ("no type", "{'fortran_order': False, 'shape': (2,)}"),
    ("no order", "{'descr': '<f4', 'shape': (2,)}"),
    ("unknown key", "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'extra': 1}"),
    ("objects", "{'descr': '|O', 'fortran_order': False, 'shape': (2,)}"),
    ("big-endian", "{'descr': '>f4', 'fortran_order': False, 'shape': (2,)}"),
    ("records", "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}"),
    ("type as number", "{'descr': 4, 'fortran_order': False, 'shape': (2,)}"),
    ("order that is none", "{'descr': '<f4', 'fortran_order': Maybe, 'shape': (2,)}"),
    ("Fortran order", "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 1)}"),
    ("negative size", "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}"),
    ("size as text", "{'descr': '<f4', 'fortran_order': False, 'shape': ('2',)}"),
    ("size beyond 64 bits", "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}"),
    ("product that wraps", "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}"),
    ("more than there is", "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}"),
    ("less than there is", "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}"),
    ("shape that is no tuple", "{'descr': '<f4', 'fortran_order': False, 'shape': 2}"),
    (
        "many dimensions",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1)}",
    ),
    ("words behind", "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} and more"),
];

/// Arrays and archives with something wrong in them.
pub fn arrays(group: &mut Group) {
    let mut try_array = |name: &str, bytes: Vec<u8>| {
        group.input(name, |_| parse(&bytes.into()).map_err(anyhow::Error::msg));
    };
    for (name, header) in HEADERS {
        try_array(name, array(header, &[0; 8]));
    }
    try_array("no bytes", Vec::new());
    try_array("another magic", b"\x93NUMPI\x01\x00".to_vec());
    try_array("version 9", b"\x93NUMPY\x09\x00\x00\x00".to_vec());
    try_array("header beyond the file", b"\x93NUMPY\x01\x00\xff\xff{".to_vec());
    try_array("huge header", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{".to_vec());
    try_array(
        "long type",
        array(&format!("{{'descr': '{}', 'fortran_order': False, 'shape': (2,)}}", "x".repeat(60_000)), &[]),
    );
    try_array(
        "control characters in a type",
        array("{'descr': '\x1b[2J', 'fortran_order': False, 'shape': (2,)}", &[0; 8]),
    );

    let stored = good("tests/fuzz/corpus/npz/stored.npz");
    let deflated = good("tests/fuzz/corpus/npz/deflated.npz");
    let find = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).position(|window| window == part).unwrap();
    let directory = |bytes: &[u8]| find(bytes, b"PK\x01\x02");
    let mut try_archive = |name: &str, bytes: Vec<u8>| {
        group.input(name, |folder| {
            let npz = Npz::open(&write(folder, "a.npz", bytes))?;
            for key in npz.keys() {
                npz.header(key)?;
                npz.array(key)?;
            }
            npz.verify()
        });
    };
    let changed = |bytes: &[u8], at: usize, part: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[at..at + part.len()].copy_from_slice(part);
        bytes
    };
    try_archive("no archive", b"hello".to_vec());
    try_archive("empty archive file", Vec::new());
    try_archive("cut archive", stored[..stored.len() - 30].to_vec());
    try_archive("archive without its directory", stored[..directory(&stored)].to_vec());
    // In the directory: the method at 10, sizes at 20 and 24, the name's length at 28, the offset at 42.
    let at = directory(&stored);
    try_archive("unknown compression", changed(&stored, at + 10, &99u16.to_le_bytes()));
    try_archive("encrypted member", changed(&stored, at + 8, &1u16.to_le_bytes()));
    try_archive("huge member", changed(&stored, at + 20, &[0xf0, 0xff, 0xff, 0xff, 0xf0, 0xff, 0xff, 0xff]));
    try_archive("member beyond the file", changed(&stored, at + 42, &0x00ff_ffffu32.to_le_bytes()));
    let at = directory(&deflated);
    try_archive("a bomb", changed(&deflated, at + 24, &0xffff_fff0u32.to_le_bytes()));
    try_archive("damaged stream", {
        let data = find(&deflated, b".npy") + 30;
        changed(&deflated, data, &[0xff; 8])
    });
    try_archive("damaged array", {
        let data = find(&stored, b"\x93NUMPY");
        changed(&stored, data, b"xxxxxx")
    });
    try_archive("damaged number", {
        let data = find(&stored, b"PK\x03\x04") + 170;
        changed(&stored, data, &[0x55; 4])
    });
}
