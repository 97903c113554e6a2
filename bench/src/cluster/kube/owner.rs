//! Who answers for what a run has made in a cluster, so that another machine's
//! `duet-bench clean` takes nothing away from a run that is still at work.

use std::fs;

/// `host/boot/pid/start` of this process.
pub fn this_process() -> String {
    let pid = std::process::id();
    format!("{}/{}/{pid}/{}", host(), boot(), started(pid).unwrap_or(0))
}

/// Whether an owner may still be at work. One on another machine may: nobody here
/// can tell.
pub fn may_be_alive(owner: &str) -> bool {
    let mut parts = owner.split('/');
    let (Some(on), Some(since), Some(pid), Some(start)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    if on != host() {
        return true;
    }
    let alive = || {
        let pid: u32 = pid.parse().ok()?;
        Some(started(pid)? == start.parse::<u64>().ok()?)
    };
    since == boot() && alive().unwrap_or(false)
}

fn host() -> String {
    read("/proc/sys/kernel/hostname")
}

fn boot() -> String {
    read("/proc/sys/kernel/random/boot_id")
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Clock ticks since boot; none for a process that has ended.
fn started(pid: u32) -> Option<u64> {
    let stat = procfs::process::Process::new(pid as i32)
        .and_then(|process| process.stat())
        .ok()?;
    (!matches!(stat.state, 'Z' | 'X')).then_some(stat.starttime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_living_and_the_unknown_are_left_alone() {
        let own = this_process();
        assert!(may_be_alive(&own));
        let (rest, start) = own.rsplit_once('/').expect("four parts");
        let later = start.parse::<u64>().expect("a number") + 1;
        assert!(!may_be_alive(&format!("{rest}/{later}")));
        assert!(may_be_alive("another-host/boot/1/1"));
        assert!(!may_be_alive("nonsense"));
    }
}
