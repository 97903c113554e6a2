//! The list of runs and their trends, plain.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::entry::{Entry, Listed, TRENDS, Trend};
use crate::analysis::words;
use crate::report::{self, STYLE, Series};
use crate::results::{Profile, State};

/// Runs of one machine, oldest first; times of different machines make no trend.
struct Bench<'a> {
    entries: Vec<(&'a str, &'a Entry)>,
}

pub fn list(runs: &[Listed]) -> String {
    let benches = by_machine(runs);
    page(
        "Duet bench: runs",
        html! {
            header { p class="kicker" { "Duet bench" } h1 { "Runs" } }
            @if runs.is_empty() { p { "There is no run here: duet-bench run --out DIR/NAME makes one." } }
            (table(runs))
            @for bench in &benches { (trends(bench, benches.len() > 1)) }
        },
    )
}

/// A page of one line.
pub fn line(text: &str) -> String {
    page(
        "Duet bench",
        html! { p { (text) } p { a href="/" { "All runs" } } },
    )
}

fn page(title: &str, body: Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { main { (body) } }
        }
    };
    page.into_string()
}

fn table(runs: &[Listed]) -> Markup {
    html! {
        div class="scroll" { table class="plain" {
            thead { tr {
                th { "run" } th { "started" } th { "profile" } th { "state" } th { "on" } th class="n" { "took" } th { "version" }
            } }
            tbody { @for (name, entry) in runs { @match &**entry {
                Ok(entry) => tr class=(if entry.state == State::Void { "void" } else { "" }) {
                    th scope="row" { a href={ "/" (encoded(name)) } { (name) } }
                    td { (words::moment(&entry.started)) }
                    td { (profile(entry.profile)) }
                    td { (state(entry)) }
                    td { (entry.cluster) ", " (entry.machine.cores) " × " (entry.machine.cpu) }
                    td class="n" { (format!("{:.0} min", entry.duration_s / 60.0)) }
                    td { (entry.version) }
                },
                Err(why) => tr class="void" {
                    th scope="row" { (name) } td colspan="6" { (why) }
                },
            } } }
        } }
    }
}

fn state(entry: &Entry) -> String {
    match entry.state {
        State::Valid => "valid".into(),
        State::Smoke => "smoke: no claims".into(),
        State::Void => format!("VOID: {}", entry.reasons.join("; ")),
    }
}

fn profile(profile: Profile) -> &'static str {
    match profile {
        Profile::Smoke => "smoke",
        Profile::Quick => "quick",
        Profile::Full => "full",
    }
}

fn by_machine(runs: &[Listed]) -> Vec<Bench<'_>> {
    let mut benches: Vec<Bench> = Vec::new();
    for (name, entry) in runs.iter().rev() {
        let Ok(entry) = &**entry else { continue };
        if entry.state == State::Void {
            continue;
        }
        let same = |bench: &&mut Bench| {
            let (_, first) = bench.entries[0];
            first.cluster == entry.cluster && first.machine.differences(&entry.machine).is_empty()
        };
        match benches.iter_mut().find(same) {
            Some(bench) => bench.entries.push((name.as_str(), entry)),
            None => benches.push(Bench {
                entries: vec![(name.as_str(), entry)],
            }),
        }
    }
    benches.retain(|bench| bench.entries.len() > 1);
    benches
}

fn trends(bench: &Bench, several: bool) -> Markup {
    let (_, first) = bench.entries[0];
    html! {
        section {
            h2 { "Trends" @if several { ": " (first.cluster) ", " (first.machine.cores) " × " (first.machine.cpu) ", " (first.machine.kernel) } }
            p class="lead" {
                "Runs of this machine from left to right, void ones left out, smoke runs left out of times and CPU. Bands are 95 % \
                 intervals. Whether a step is one, duet-bench compare says."
            }
            div class="figures" { @for trend in &TRENDS { (drawn(bench, trend)) } }
        }
    }
}

fn drawn(bench: &Bench, trend: &'static Trend) -> Markup {
    let counted = |entry: &Entry| !trend.timed || entry.state == State::Valid;
    let mut series: Vec<Series> = Vec::new();
    for (at, (name, entry)) in bench.entries.iter().enumerate() {
        let mine = entry
            .values
            .iter()
            .filter(|value| std::ptr::eq(value.trend, trend));
        for value in mine.filter(|_| counted(entry)) {
            let point = ((at + 1) as f64, value.estimate, name.to_string());
            match series.iter_mut().find(|series| series.arm == value.arm) {
                Some(series) => series.points.push(point),
                None => series.push(Series {
                    arm: value.arm.clone(),
                    points: vec![point],
                }),
            }
        }
    }
    series.retain(|series| series.points.len() > 1);
    html! { @if !series.is_empty() { (report::trend(trend.title, trend.unit, &series)) } }
}

/// As a part of a path.
pub fn encoded(name: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    name.bytes()
        .map(|byte| {
            if keep(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// The other way round; nothing where it is no text.
pub fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                u8::from_str_radix(digits, 16).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}
