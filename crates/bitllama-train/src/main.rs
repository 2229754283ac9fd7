//! `bitllama-train`: distil a Llama-family model into a low-bit student, evaluate it, export it.

use std::process::ExitCode;

use anyhow::Error;
use bitllama_kernels::Isa;
use bitllama_kernels::allocator::keep_freed_memory;
use bitllama_nn::ops::fused_by_env;
use bitllama_runtime::one_line;
use bitllama_train::commands::{bench_step, cache_teacher, distill, eval, export, generate_data, quantize, report};
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
    Report(report::Args),
}

fn main() -> ExitCode {
    keep_freed_memory();
    run(Cli::parse().command).unwrap_or_else(|error| {
        eprintln!("error: {}", one_line(error.as_ref()));
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
        Command::Quantize(args) => quantize::run(args),
        Command::CacheTeacher(args) => cache_teacher::run(args),
        Command::GenerateData(args) => generate_data::run(args),
        Command::BenchStep(args) => bench_step::run(args),
        Command::Report(args) => report::run(args),
    };
    done.map(|()| ExitCode::SUCCESS)
}
