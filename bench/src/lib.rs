//! The instrument: runs the same workload with no mesh, with sidecars and with
//! agents, and writes reports that can be compared.
#![forbid(unsafe_code)]

pub mod cli;

pub mod arm;
pub mod run;
pub mod scenario;

pub mod accounting;
pub mod attend;
pub mod cluster;
mod descriptors;
pub mod doctor;
pub mod errand;
pub mod forge;
pub mod load;
pub mod peer;
pub mod serve;
pub mod stress;

pub mod analysis;
pub mod compare;
pub mod export;
pub mod foresee;
pub mod import;
pub mod listing;
pub mod perf;
pub mod report;
pub mod results;
pub mod shelf;
pub mod stats;
