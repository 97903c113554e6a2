//! `duet-bench`: everything is in the library, so that tests can reach it.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    duet_bench::cli::main()
}
