//! The `.npy` format: a header of Python text, then the elements.
//!
//! The parser is our own because headers come from untrusted files: the one of the `npyz` crate allocates whatever
//! length a header states (up to 4 GiB) and hands the text to a recursive parser of Python literals, which nested
//! brackets drive out of stack. Ours accepts only what NumPy writes for plain arrays. `npyz` checks it in the tests.

use bitllama_core::excerpt;
use bytes::Bytes;
use half::f16;

const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy's own limit.
const MAX_DIMENSIONS: usize = 64;

/// Element type of an array, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Dtype {
    U8,
    I8,
    I32,
    I64,
    F16,
    F32,
    F64,
}

impl Dtype {
    const ALL: [Dtype; 7] = [Dtype::U8, Dtype::I8, Dtype::I32, Dtype::I64, Dtype::F16, Dtype::F32, Dtype::F64];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Dtype::U8 | Dtype::I8 => 1,
            Dtype::F16 => 2,
            Dtype::I32 | Dtype::F32 => 4,
            Dtype::I64 | Dtype::F64 => 8,
        }
    }

    /// NumPy's name, such as `<f4`.
    pub const fn descr(self) -> &'static str {
        match self {
            Dtype::U8 => "|u1",
            Dtype::I8 => "|i1",
            Dtype::I32 => "<i4",
            Dtype::I64 => "<i8",
            Dtype::F16 => "<f2",
            Dtype::F32 => "<f4",
            Dtype::F64 => "<f8",
        }
    }
}

/// What stands in front of the elements of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, slowest first; none for a single number.
    pub shape: Vec<usize>,
    /// Bytes in front of the first element.
    pub data_start: usize,
    /// Bytes of all elements.
    pub data_len: usize,
}

/// An array in C order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, slowest first; none for a single number.
    pub shape: Vec<usize>,
    /// Elements as little-endian bytes; a part of the memory map where the array was stored undeflated.
    pub data: Bytes,
}

impl Array {
    /// The elements of a float array as f32 (f64 is rounded); `None` for integers.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        match self.dtype {
            Dtype::F16 => Some(self.elements(|b| f16::from_le_bytes(b).to_f32())),
            Dtype::F32 => Some(self.elements(f32::from_le_bytes)),
            Dtype::F64 => Some(self.elements(|b| f64::from_le_bytes(b) as f32)),
            _ => None,
        }
    }

    /// The elements of an integer array; `None` for floats.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        match self.dtype {
            Dtype::U8 => Some(self.elements(|[b]| b as i64)),
            Dtype::I8 => Some(self.elements(|[b]| b as i8 as i64)),
            Dtype::I32 => Some(self.elements(|b| i32::from_le_bytes(b) as i64)),
            Dtype::I64 => Some(self.elements(i64::from_le_bytes)),
            _ => None,
        }
    }

    /// The number in an array of one element, of whatever type.
    pub fn to_number(&self) -> Option<f64> {
        let number = match self.dtype {
            Dtype::F64 => self.elements(f64::from_le_bytes),
            Dtype::F16 | Dtype::F32 => self.to_f32()?.into_iter().map(f64::from).collect(),
            _ => self.to_i64()?.into_iter().map(|x| x as f64).collect(),
        };
        match number[..] {
            [number] => Some(number),
            _ => None,
        }
    }

    fn elements<const N: usize, T>(&self, element: impl Fn([u8; N]) -> T) -> Vec<T> {
        self.data.as_chunks().0.iter().map(|bytes| element(*bytes)).collect()
    }
}

/// The bytes in front of the elements, version 1.0, as many as a multiple of 64.
pub fn header(dtype: Dtype, shape: &[usize]) -> Vec<u8> {
    let dimensions: String = match shape {
        [one] => format!("{one},"),
        _ => shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    };
    let text = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({dimensions}), }}", dtype.descr());
    let start = MAGIC.len() + 4;
    let total = (start + text.len() + 1).next_multiple_of(64);
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend(((total - start) as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.resize(total - 1, b' ');
    bytes.push(b'\n');
    bytes
}

/// Reads a whole `.npy` file or member.
///
/// # Errors
/// What is wrong with it: no array, an element type or order that is not supported, or more or fewer bytes than the
/// shape asks for.
pub fn parse(bytes: &Bytes) -> Result<Array, String> {
    let Header { dtype, shape, data_start, data_len } = Header::parse(bytes)?;
    let found = bytes.len() - data_start;
    if found != data_len {
        return Err(format!("{shape:?} elements of {} take {data_len} bytes, found {found}", dtype.descr()));
    }
    Ok(Array { dtype, shape, data: bytes.slice(data_start..) })
}

impl Header {
    /// Longest header that [`Header::parse`] takes, in bytes: that of version 1.0.
    pub const MAX_LEN: usize = 10 + u16::MAX as usize;

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Header, String> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("not a NumPy array")?;
        let (start, length) = match *rest {
            [1, _, a, b, ..] => (10, u16::from_le_bytes([a, b]) as usize),
            [2 | 3, _, a, b, c, d, ..] => (12, u32::from_le_bytes([a, b, c, d]) as usize),
            [] | [1..=3, ..] => return Err("the NumPy header is cut off".into()),
            [version, ..] => return Err(format!("NumPy format version {version} is not known")),
        };
        if length > Self::MAX_LEN - start {
            return Err(format!("a NumPy header of {length} bytes is too long"));
        }
        let data_start = start + length;
        let text = bytes.get(start..data_start).ok_or("the NumPy header is cut off")?;
        let (dtype, shape) = Parser { text }.dictionary()?;
        let data_len = shape
            .iter()
            .try_fold(dtype.size(), |len, dimension| len.checked_mul(*dimension))
            .ok_or_else(|| format!("the shape {shape:?} is too large"))?;
        Ok(Header { dtype, shape, data_start, data_len })
    }
}

/// What is left of the header's text.
struct Parser<'a> {
    text: &'a [u8],
}

impl<'a> Parser<'a> {
    fn dictionary(mut self) -> Result<(Dtype, Vec<usize>), String> {
        let (mut dtype, mut shape, mut order) = (None, None, None);
        self.expect(b'{')?;
        while !self.accept(b'}') {
            let key = self.string()?;
            self.expect(b':')?;
            match key {
                b"descr" => dtype = Some(self.dtype()?),
                b"fortran_order" => order = Some(self.fortran_order()?),
                b"shape" => shape = Some(self.shape()?),
                _ => return Err(format!("the NumPy header has an unknown key `{}`", printable(key))),
            }
            if !self.accept(b',') {
                self.expect(b'}')?;
                break;
            }
        }
        self.skip_spaces();
        match (self.text, dtype, shape, order) {
            ([], Some(dtype), Some(shape), Some(false)) => Ok((dtype, shape)),
            ([], Some(_), Some(shape), Some(true)) if shape.len() > 1 => {
                Err("the array is in Fortran order; write it with numpy.ascontiguousarray".into())
            }
            ([], Some(dtype), Some(shape), Some(true)) => Ok((dtype, shape)),
            ([], ..) => Err("the NumPy header lacks `descr`, `fortran_order` or `shape`".into()),
            _ => Err("the NumPy header does not end after its dictionary".into()),
        }
    }

    fn dtype(&mut self) -> Result<Dtype, String> {
        self.skip_spaces();
        if self.text.starts_with(b"[") {
            return Err("arrays of records are not supported".into());
        }
        let descr = self.string()?;
        let supported = || Dtype::ALL.map(Dtype::descr).join(", ");
        Dtype::ALL
            .into_iter()
            .find(|dtype| {
                dtype.descr().as_bytes() == descr || (dtype.size() == 1 && dtype.descr().as_bytes()[1..] == *descr)
            })
            .ok_or_else(|| format!("element type `{}` is not one of {}", printable(descr), supported()))
    }

    fn fortran_order(&mut self) -> Result<bool, String> {
        self.skip_spaces();
        for (word, value) in [(&b"False"[..], false), (b"True", true)] {
            if let Some(rest) = self.text.strip_prefix(word) {
                self.text = rest;
                return Ok(value);
            }
        }
        Err("`fortran_order` is neither True nor False".into())
    }

    fn shape(&mut self) -> Result<Vec<usize>, String> {
        let mut shape = Vec::new();
        self.expect(b'(')?;
        while !self.accept(b')') {
            shape.push(self.number()?);
            if shape.len() > MAX_DIMENSIONS {
                return Err("the array has too many dimensions".into());
            }
            if !self.accept(b',') {
                self.expect(b')')?;
                break;
            }
        }
        Ok(shape)
    }

    fn number(&mut self) -> Result<usize, String> {
        self.skip_spaces();
        let digits = self.text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = self.text.split_at(digits);
        if number.is_empty() {
            let end = rest.iter().position(|byte| matches!(byte, b',' | b')')).unwrap_or(rest.len());
            return Err(format!("`{}` is no dimension of an array", printable(&rest[..end])));
        }
        self.text = rest;
        str::from_utf8(number)
            .unwrap_or_default()
            .parse()
            .map_err(|_| format!("`{}` is no dimension of an array", printable(number)))
    }

    fn string(&mut self) -> Result<&'a [u8], String> {
        self.skip_spaces();
        let quoted = match self.text {
            [quote @ (b'\'' | b'"'), rest @ ..] => rest.iter().position(|b| b == quote).map(|end| rest.split_at(end)),
            _ => None,
        };
        let (string, rest) = quoted.ok_or("the NumPy header lacks a quoted string")?;
        self.text = &rest[1..];
        Ok(string)
    }

    fn expect(&mut self, byte: u8) -> Result<(), String> {
        match self.accept(byte) {
            true => Ok(()),
            false => Err(format!("the NumPy header lacks a `{}`", byte as char)),
        }
    }

    fn accept(&mut self, byte: u8) -> bool {
        self.skip_spaces();
        let rest = self.text.strip_prefix(&[byte]);
        self.text = rest.unwrap_or(self.text);
        rest.is_some()
    }

    fn skip_spaces(&mut self) {
        self.text = self.text.trim_ascii_start();
    }
}

/// Bytes of a header in a message.
fn printable(bytes: &[u8]) -> String {
    excerpt(&bytes.escape_ascii().to_string()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_header(text: &str) -> Vec<u8> {
        let mut bytes = [MAGIC, &[1, 0], &(text.len() as u16).to_le_bytes()].concat();
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn headers_read_back_here_and_elsewhere() {
        let shapes: [&[usize]; 5] = [&[], &[3], &[0, 7], &[3, 4], &[1, 2, 3, 123_456_789]];
        for dtype in Dtype::ALL {
            for shape in shapes {
                let bytes = header(dtype, shape);
                assert_eq!(bytes.len() % 64, 0);
                let ours = Header::parse(&bytes).unwrap();
                assert_eq!((ours.dtype, ours.shape.as_slice(), ours.data_start), (dtype, shape, bytes.len()));
                let theirs = npyz::NpyHeader::from_reader(bytes.as_slice()).unwrap();
                assert_eq!(theirs.dtype().descr(), format!("'{}'", dtype.descr()));
                assert_eq!(theirs.shape(), shape.iter().map(|d| *d as u64).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn unusual_headers_are_refused_with_a_reason() {
        let refused = [
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }", "Fortran"),
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", ">f4"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", "|O"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", "records"),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (2305843009213693952,), }", "too large"),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999,), }", "no dimension"),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }", "no dimension"),
            ("{'descr': '<f8', 'fortran_order': False, }", "lacks"),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (), } x", "does not end"),
            ("((((((((", "lacks"),
        ];
        for (text, reason) in refused {
            let message = Header::parse(&with_header(text)).unwrap_err();
            assert!(message.contains(reason), "{text}: {message}");
        }
        assert!(Header::parse(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{").unwrap_err().contains("too long"));
    }

    #[test]
    fn elements_are_converted() {
        let array = |dtype, data: &[u8]| Array { dtype, shape: vec![1], data: Bytes::copy_from_slice(data) };
        assert_eq!(array(Dtype::F16, &f16::from_f32(1.5).to_le_bytes()).to_f32(), Some(vec![1.5]));
        assert_eq!(array(Dtype::I8, &[255]).to_i64(), Some(vec![-1]));
        assert_eq!(array(Dtype::I64, &7i64.to_le_bytes()).to_number(), Some(7.0));
        assert_eq!(array(Dtype::F64, &0.1f64.to_le_bytes()).to_number(), Some(0.1));
        assert_eq!(array(Dtype::F32, &[0; 4]).to_i64(), None);
        assert_eq!(array(Dtype::U8, &[1, 2]).to_number(), None);
    }
}
