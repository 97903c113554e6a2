//! A folder of results: to be looked at as pages (`duet-bench serve-report`), and to be kept with the
//! project (`duet-bench publish`).

mod entry;
mod pages;
mod publish;
mod server;

#[cfg(test)]
mod tests;

pub use publish::{PublishArgs, PublishError, publish};
pub use server::{ServeReportArgs, ServeReportError, serve};
