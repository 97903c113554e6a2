//! The generators that an attendant has started, each a process of its own, as
//! on any other cluster.

use super::protocol::Loaded;
use super::readings::said;
use super::{Attendant, realtime};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::thread;

impl Attendant {
    pub(super) fn load(
        &self,
        id: u64,
        arguments: &[String],
        begin_ns: u64,
    ) -> Result<Loaded, String> {
        // Of this question's thread, and so of the process that it starts.
        realtime::enter();
        let arguments = [&["load".to_owned()], arguments].concat();
        let report = self.run(id, &arguments, Some(begin_ns))?;
        serde_json::from_str(&report).map_err(|error| format!("its report: {error}"))
    }

    /// Runs this program with other arguments, to its end.
    pub(super) fn run(
        &self,
        id: u64,
        arguments: &[String],
        begin_ns: Option<u64>,
    ) -> Result<String, String> {
        let program = std::env::current_exe().map_err(said)?;
        let begin = begin_ns.map(|at| ["--start-at".to_owned(), at.to_string()]);
        let mut child = Command::new(program)
            .args(arguments)
            .args(begin.iter().flatten())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("start {}: {error}", arguments.join(" ")))?;
        self.generators
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, child.id());
        let complaints = child.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut text = String::new();
                let _ = stderr.read_to_string(&mut text);
                text
            })
        });
        let mut report = String::new();
        let read = child
            .stdout
            .take()
            .map_or(Ok(0), |mut stdout| stdout.read_to_string(&mut report));
        let status = child.wait();
        self.generators
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
        let complaints = complaints
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        read.map_err(said)?;
        if !status.map_err(said)?.success() {
            let last = complaints.lines().last().unwrap_or("it said nothing");
            return Err(last.to_owned());
        }
        Ok(report)
    }

    pub(super) fn stop_load(&self, load: u64) -> Result<(), String> {
        let generators = self
            .generators
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let pid = generators.get(&load).ok_or("the generator has ended")?;
        kill(Pid::from_raw(*pid as i32), Signal::SIGTERM).map_err(said)
    }
}
