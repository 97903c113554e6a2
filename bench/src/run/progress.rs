//! How far a run is: a bar on a terminal, plain lines anywhere else.

use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Long work, with an estimate of how long.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    done: Cell<u64>,
}

impl Progress {
    /// Work estimated at `total`.
    pub fn start(total: Duration) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total.as_millis() as u64);
            let style = ProgressStyle::with_template(
                "{elapsed_precise} [{bar:30}] {percent:>3} % · {wide_msg}",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("━╸ ");
            bar.set_style(style);
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        Self {
            bar,
            started: Instant::now(),
            done: Cell::new(0),
        }
    }

    /// What is being done now.
    pub fn doing(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }

    /// A part of the estimate is done; `what` is printed where there is no bar.
    pub fn done(&self, what: &str, estimated: Duration) {
        self.done
            .set(self.done.get() + estimated.as_millis() as u64);
        match &self.bar {
            Some(bar) => bar.set_position(self.done.get()),
            None => self.line(what),
        }
    }

    /// A line that stays.
    pub fn line(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.println(what),
            None => eprintln!("{:>5.0} s  {what}", self.started.elapsed().as_secs_f64()),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
