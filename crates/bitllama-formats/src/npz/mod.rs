//! NumPy archives (`.npz`): a ZIP file of `.npy` members.
//!
//! Ours are stored, not deflated, and every array starts at a multiple of 64 bytes of the file, so that a reader maps
//! the file and uses the packed weights where they lie: opening a model costs no copy and no memory of its own.
//! `numpy.load` reads them like any other archive. Deflated members of other tools' archives are read into memory.

mod npy;
mod reader;
mod writer;

pub use npy::{Array, Dtype, Header, header, parse};
pub use reader::{Npz, map_file};
pub use writer::{ALIGNMENT, NpzWriter};

// Arrays are written and read as little-endian bytes; `bytemuck` views of them are only right on such machines.
const _: () = assert!(cfg!(target_endian = "little"), "NPZ files are read and written on little-endian machines only");
