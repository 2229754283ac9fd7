//! `bitllama-train`: distil a Llama-family model into a low-bit student, evaluate it, export it.

use std::process::ExitCode;

use bitllama_kernels::allocator::keep_freed_memory;
use bitllama_runtime::one_line;
use bitllama_train::commands::{bench_step, cache_teacher, distill, eval, export, generate_data, quantize};
use clap::{Parser, Subcommand};

/// Distil a Llama-family model into a low-bit student, evaluate it, export it
#[derive(Parser)]
#[command(version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Distill(distill::Args),
    Pretrain(distill::Args),
    Eval(eval::Args),
    Export(export::Args),
    Quantize(quantize::Args),
    CacheTeacher(cache_teacher::Args),
    GenerateData(generate_data::Args),
    BenchStep(bench_step::Args),
}

fn main() -> ExitCode {
    keep_freed_memory();
    let result = match Cli::parse().command {
        Command::Distill(args) => distill::distill(args),
        Command::Pretrain(args) => distill::pretrain(args),
        Command::Eval(args) => eval::run(args).map(|()| ExitCode::SUCCESS),
        Command::Export(args) => export::run(args).map(|()| ExitCode::SUCCESS),
        Command::Quantize(args) => quantize::run(args).map(|()| ExitCode::SUCCESS),
        Command::CacheTeacher(args) => cache_teacher::run(args).map(|()| ExitCode::SUCCESS),
        Command::GenerateData(args) => generate_data::run(args).map(|()| ExitCode::SUCCESS),
        Command::BenchStep(args) => bench_step::run(args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {}", one_line(error.as_ref()));
        ExitCode::FAILURE
    })
}
