//! NumPy archives
