//! kubectl duet: who is meshed how, who talks to whom, and whether all is well.
#![forbid(unsafe_code)]

fn main() {}
