//! `print!`, `println!` and `eprintln!` of this crate. The standard library's panic where nobody reads any more, which would end
//! a run between two checkpoints because its output went through `head`; see [`bitllama_runtime::console`].

macro_rules! print {
    ($($text:tt)*) => { bitllama_console::out(format_args!($($text)*)) };
}

macro_rules! println {
    () => { print!("\n") };
    ($($text:tt)*) => { print!("{}\n", format_args!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { bitllama_console::note(format_args!("{}\n", format_args!($($text)*))) };
}
