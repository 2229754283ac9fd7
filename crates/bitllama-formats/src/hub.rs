//! Models by hub id
