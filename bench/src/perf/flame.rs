//! Where the proxies' time goes: a flame graph of each subject at saturation.

use super::{Lab, RATES, Subject, Trouble};
use crate::scenario::Drive;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const WINDOW: Duration = Duration::from_secs(6);
/// Samples/s of each processor: a prime, so as not to march in step with anything.
const FREQUENCY: &str = "499";

/// `<dir>/<subject>.svg`, by `perf`, `inferno-collapse-perf` and `inferno-flamegraph`.
pub fn draw(lab: &Lab<'_>, subjects: &[Subject], dir: &Path) -> Result<(), Trouble> {
    std::fs::create_dir_all(dir).map_err(|error| Trouble::Other(error.to_string()))?;
    for subject in subjects.iter().filter(|subject| subject.arm.meshed()) {
        let bed = &lab.beds[&subject.arm];
        let mut pids = Vec::new();
        for node in 1..=bed.cluster.nodes() {
            pids.extend(bed.cluster.pids(node)?.iter().map(u32::to_string));
        }
        let mut drive = subject.drive(bed, RATES[RATES.len() - 1])?;
        drive.window = WINDOW;
        let generator = drive.start(bed, Drive::appointment(bed, Duration::from_millis(500)))?;
        let name = subject.title().replace(' ', "-");
        let data = dir.join(format!("{name}.perf"));
        let seconds = (WINDOW / 2).as_secs().to_string();
        let mut record = Command::new("perf");
        record
            .args(["record", "-q", "-e", "cpu-clock", "-F", FREQUENCY])
            .args(["--call-graph", "dwarf,16384", "-p", &pids.join(","), "-o"])
            .arg(&data)
            .args(["--", "sleep", &seconds]);
        succeed(&mut record, "perf record")?;
        generator.report(lab.interrupt)?;
        let svg = dir.join(format!("{name}.svg"));
        let pipeline = "perf script -i \"$1\" 2>/dev/null | inferno-collapse-perf > \"$1.folded\" \
             && inferno-flamegraph --title \"$3\" \"$1.folded\" > \"$2\" && rm \"$1\"";
        let mut fold = Command::new("sh");
        fold.args(["-c", pipeline, "sh"])
            .arg(&data)
            .arg(&svg)
            .arg(subject.title());
        succeed(&mut fold, "inferno (cargo install inferno)")?;
        println!("{}", svg.display());
    }
    Ok(())
}

fn succeed(command: &mut Command, name: &str) -> Result<(), Trouble> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Trouble::Other(format!("{name}: {status}"))),
        Err(error) => Err(Trouble::Other(format!("{name}: {error}"))),
    }
}
