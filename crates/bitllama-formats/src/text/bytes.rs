//! The bytes of a text file: unpacked, checked to be UTF-8, without a byte order mark.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::files::{Input, Packing};
use crate::{Error, Result};

/// Bytes that are taken from a file at a time.
const BLOCK: usize = 64 << 10;

/// Opens a text file.
///
/// # Errors
/// [`Error::Io`]; [`Error::Invalid`] for a folder, pipe or device.
pub(super) fn open(path: &Path) -> Result<Utf8<Box<dyn Read>>> {
    if Input::of(path)? == Input::Folder {
        return Err(Error::invalid(path, "a folder, where a file is needed"));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    let inner: Box<dyn Read> = match Packing::of(path) {
        Packing::None => Box::new(file),
        Packing::Gzip => Box::new(Gzip(MultiGzDecoder::new(BufReader::with_capacity(BLOCK, file)))),
        Packing::Zstd => Box::new(Zstd::new(BufReader::with_capacity(BLOCK, file))),
    };
    Ok(Utf8::new(inner))
}

/// The first byte that is not white space, which stays unread.
///
/// # Errors
/// Those of the reader.
pub(super) fn first_visible(reader: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let block = reader.fill_buf()?;
        let blank = block.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        match block.get(blank) {
            Some(byte) => return Ok(Some(*byte)),
            None if blank == 0 => return Ok(None),
            None => reader.consume(blank),
        }
    }
}

/// Gives out whole characters of UTF-8 only, and ends with an error at the first byte that is none.
pub(super) struct Utf8<R> {
    inner: R,
    block: Vec<u8>,
    /// `block[at..checked]` is there to be read, `block[checked..filled]` may begin a character.
    at: usize,
    checked: usize,
    filled: usize,
    /// Bytes of the text, and line ends in them, in front of `block[checked]`.
    offset: u64,
    lines: u64,
    started: bool,
}

impl<R: Read> Utf8<R> {
    fn new(inner: R) -> Self {
        Self { inner, block: vec![0; BLOCK], at: 0, checked: 0, filled: 0, offset: 0, lines: 0, started: false }
    }

    /// Takes bytes until there are `wanted`, or no more.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        while self.filled < wanted {
            match self.inner.read(&mut self.block[self.filled..]) {
                Ok(0) => break,
                Ok(n) => self.filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Takes the next block and checks it; none is left if nothing can be read after it.
    fn next_block(&mut self) -> io::Result<()> {
        self.block.copy_within(self.checked..self.filled, 0);
        (self.at, self.filled, self.checked) = (0, self.filled - self.checked, 0);
        let begun = self.filled;
        self.fill(begun + 1)?;
        if !self.started {
            self.started = true;
            self.fill(4)?;
            self.at = begin(&self.block[..self.filled])?;
            (self.checked, self.offset) = (self.at, self.at as u64);
        }
        let fresh = &self.block[self.checked..self.filled];
        let good = match std::str::from_utf8(fresh) {
            Ok(_) => fresh.len(),
            // A character that the next block ends, unless there is none.
            Err(e) if e.error_len().is_none() && self.filled > begun => e.valid_up_to(),
            Err(e) if e.valid_up_to() > 0 => e.valid_up_to(),
            Err(_) => {
                let (byte, line) = (self.offset, self.lines + 1);
                let reason =
                    format!("not UTF-8 at byte {byte} (line {line}): convert the file, for instance with iconv");
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
        };
        self.lines += fresh[..good].iter().filter(|byte| **byte == b'\n').count() as u64;
        self.checked += good;
        self.offset += good as u64;
        Ok(())
    }
}

/// Length of the byte order mark that a text begins with.
fn begin(text: &[u8]) -> io::Result<usize> {
    let refuse = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    match text {
        [0xef, 0xbb, 0xbf, ..] => Ok(3),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            refuse("UTF-16 text: convert it, for instance with iconv -f UTF-16 -t UTF-8")
        }
        [0x1f, 0x8b, ..] => refuse("gzip data: let the file's name end in .gz"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => refuse("Zstandard data: let the file's name end in .zst"),
        _ => Ok(0),
    }
}

impl<R: Read> BufRead for Utf8<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.checked {
            let before = self.offset;
            self.next_block()?;
            if self.offset == before && self.filled == self.checked {
                break;
            }
        }
        Ok(&self.block[self.at..self.checked])
    }

    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.checked);
    }
}

impl<R: Read> Read for Utf8<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

/// gzip, with errors that say so.
struct Gzip<R>(MultiGzDecoder<R>);

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out).map_err(|e| damaged("gzip", &e))
    }
}

/// Zstandard frames one after the other, each with its checksum.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    /// The decoder stands in a frame.
    within: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        Self { source, decoder: FrameDecoder::new(), within: false }
    }

    /// Begins the next frame, if there is one.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                }
                Err(e) => return Err(damaged("Zstandard", &e)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.within {
                self.within = self.next_frame()?;
                if !self.within {
                    return Ok(0);
                }
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let some = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, some).map_err(|e| damaged("Zstandard", &e))?;
            }
            let n = self.decoder.read(out)?;
            if n > 0 || out.is_empty() {
                return Ok(n);
            }
            let said = self.decoder.get_checksum_from_data();
            if said.is_some() && said != self.decoder.get_calculated_checksum() {
                return Err(damaged("Zstandard", &"the checksum does not fit"));
            }
            self.within = false;
        }
    }
}

fn damaged(format: &str, cause: &dyn std::fmt::Display) -> io::Error {
    let cause = crate::hf::one_line(&cause.to_string());
    io::Error::new(io::ErrorKind::InvalidData, format!("damaged {format} data ({cause})"))
}
