//! `kubectl duet inject` is `duet-control inject`: there is one injector, the one that
//! the webhook runs too.

use crate::cli::InjectArgs;
use crate::cluster::Error;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

const INJECTOR: &str = "duet-control";

pub fn run(args: &InjectArgs) -> Result<ExitCode, Error> {
    // Only comes back if it could not be started.
    let error = Command::new(INJECTOR)
        .arg("inject")
        .args(&args.arguments)
        .exec();
    Err(Error::Local(match error.kind() {
        ErrorKind::NotFound => format!(
            "inject is {INJECTOR}'s, which is not on the PATH: install it, or run `{INJECTOR} inject` in its image"
        ),
        _ => format!("{INJECTOR} inject: {error}"),
    }))
}
