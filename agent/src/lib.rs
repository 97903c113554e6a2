//! The placement with one proxy per node.
//!
//! Everything here is redirection: eBPF programs, pinned so that they outlive the
//! agent, lead the connections of enrolled network namespaces to listeners inside
//! those namespaces. What happens to a connection after that is `duet_core`.

#![deny(unsafe_code)]

pub mod api;
pub mod bpffs;
pub mod cgroup;
pub mod cleanup;
pub mod cni;
pub mod doctor;
pub mod enrolment;
pub mod handover;
pub mod interception;
pub mod keeper;
pub mod kernel;
pub mod maps;
pub mod migration;
pub mod netns;
pub mod passing;
pub mod pod;
pub mod privilege;
pub mod programs;
mod put;
pub mod reconcile;
pub mod record;
pub mod report;
pub mod run;
pub mod sandbox;
pub mod succession;
pub mod supervisor;
#[expect(unsafe_code, reason = "bpf(2); each use says why it is sound")]
pub mod sys;
pub mod tally;
mod watch;
