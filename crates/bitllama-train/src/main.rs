//! `bitllama-train`: distil a Llama-family model into a low-bit student, evaluate it, export it.

use std::process::ExitCode;

use anyhow::Error;
use bitllama_kernels::Isa;
use bitllama_kernels::allocator::keep_freed_memory;
use bitllama_nn::ops::fused_by_env;
use bitllama_runtime::one_line;
use bitllama_train::commands::{
    bench_step, cache_teacher, dequantize, distill, eval, export, generate_data, grid, import, quantize, quick, report,
    speed,
};
use bitllama_train::grid::child::stop_with_stdin;
use clap::{Parser, Subcommand};

/// Distil a Llama-family model into a low-bit student, evaluate it, export it
#[derive(Parser)]
#[command(version, max_term_width = 120)]
struct Cli {
    /// End as soon as standard input does: for programs that start this one
    #[arg(long, global = true, hide = true)]
    stop_with_stdin: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Distill(distill::Args),
    Pretrain(distill::Args),
    Eval(eval::Args),
    Export(export::Args),
    Import(import::Args),
    Dequantize(dequantize::Args),
    Quantize(quantize::Args),
    Quick(quick::Args),
    CacheTeacher(cache_teacher::Args),
    GenerateData(generate_data::Args),
    BenchStep(bench_step::Args),
    Grid(grid::Args),
    Report(report::Args),
    #[command(hide = true)]
    Speed(speed::Args),
}

fn main() -> ExitCode {
    keep_freed_memory();
    bitllama_formats::notes::listen(|remark| bitllama_console::note(format_args!("note: {remark}\n")));
    let cli: Cli = match bitllama_console::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if cli.stop_with_stdin {
        stop_with_stdin();
    }
    let ended = run(cli.command).and_then(|code| bitllama_console::finish().map(|()| code));
    ended.unwrap_or_else(|error| {
        bitllama_console::note(format_args!("error: {}\n", one_line(error.as_ref())));
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    // Both would be taken for their defaults where they are first needed.
    Isa::from_env().map_err(Error::msg)?;
    fused_by_env().map_err(Error::msg)?;
    let done = match command {
        Command::Distill(args) => return distill::distill(args),
        Command::Pretrain(args) => return distill::pretrain(args),
        Command::Eval(args) => eval::run(args),
        Command::Export(args) => export::run(args),
        Command::Import(args) => import::run(args),
        Command::Dequantize(args) => dequantize::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Quick(args) => quick::run(args),
        Command::CacheTeacher(args) => cache_teacher::run(args),
        Command::GenerateData(args) => generate_data::run(args),
        Command::BenchStep(args) => bench_step::run(args),
        Command::Grid(args) => return grid::run(args),
        Command::Report(args) => report::run(args),
        Command::Speed(args) => speed::run(args),
    };
    done.map(|()| ExitCode::SUCCESS)
}
