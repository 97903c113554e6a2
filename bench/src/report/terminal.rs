//! What a run prints when it is done: the banner and the verdict table, within 100 columns.

use comfy_table::presets::UTF8_FULL;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table};

use crate::analysis::{Concern, words};
use crate::results::{Basis, Results, State, Verdict};

const COLUMNS: u16 = 100;

/// One line on whether the numbers may be used, and the reasons. `colour` is for a terminal.
pub fn banner(results: &Results, colour: bool) -> String {
    let (word, code) = match results.status.state {
        State::Valid => ("VALID", "32"),
        State::Smoke => ("SMOKE: everything works, nothing is claimed", "33"),
        State::Void => ("VOID: nothing may be concluded from this run", "31"),
    };
    let paint = |text: &str, code: &str| {
        if colour {
            format!("\u{1b}[1;{code}m{text}\u{1b}[0m")
        } else {
            text.to_string()
        }
    };
    let mut text = paint(word, code);
    for reason in &results.status.reasons {
        // Void trials stand out in a run of any kind.
        text += &format!(
            "\n  {}",
            paint(
                reason,
                if results.status.state == State::Valid {
                    "33"
                } else {
                    "31"
                }
            )
        );
    }
    text
}

/// The four questions, and below each a row per scenario: what was asked, and the answer with its
/// uncertainty.
pub fn verdict_table(results: &Results, colour: bool) -> String {
    let tables: Vec<String> = Concern::ALL
        .into_iter()
        .filter_map(|concern| {
            let all = results.analysis.verdicts.iter();
            let verdicts: Vec<&Verdict> = all
                .filter(|verdict| Concern::of(&verdict.scenario) == concern)
                .collect();
            let question = concern.question();
            let heading = if colour {
                format!("\u{1b}[1m{question}\u{1b}[0m")
            } else {
                question.to_string()
            };
            (!verdicts.is_empty())
                .then(|| format!("{heading}\n{}", answers(results, &verdicts, colour)))
        })
        .collect();
    if tables.is_empty() {
        return "Nothing was measured.".to_owned();
    }
    tables.join("\n\n")
}

fn answers(results: &Results, verdicts: &[&Verdict], colour: bool) -> String {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(COLUMNS)
        .set_header(vec!["", "question", "answer"]);
    if colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    for verdict in verdicts {
        let mark = match verdict.basis {
            Basis::Claimed => Cell::new(&verdict.scenario).fg(Color::Green),
            Basis::Counted => Cell::new(&verdict.scenario).fg(Color::Cyan),
            Basis::NotResolved => Cell::new(format!("{} ~", verdict.scenario)).fg(Color::Yellow),
            Basis::NotMeasured => Cell::new(format!("{} –", verdict.scenario)).fg(Color::Red),
        };
        table.add_row(vec![
            mark,
            Cell::new(&verdict.question).add_attribute(Attribute::Bold),
            Cell::new(brief(results, &verdict.answer, &verdict.figures)),
        ]);
    }
    for (column, width) in [(0, 6), (1, 26)] {
        if let Some(column) = table.column_mut(column) {
            column.set_constraint(comfy_table::ColumnConstraint::UpperBoundary(
                comfy_table::Width::Fixed(width),
            ));
        }
    }
    table.to_string()
}

/// The sentence, and below it the figures by arm where there are some.
fn brief(results: &Results, answer: &str, figures: &[(String, String)]) -> String {
    // The banner has said it once for all rows.
    let answer = match results.status.state {
        State::Valid => answer,
        State::Void | State::Smoke => answer.split_once("Seen: ").map_or(answer, |(_, seen)| seen),
    };
    let answer = words::unbroken(answer);
    if figures.is_empty() {
        return answer;
    }
    let figures: Vec<String> = figures
        .iter()
        .map(|(arm, figure)| format!("{arm} {figure}").replace(' ', "\u{a0}"))
        .collect();
    format!("{answer}\n→ {}", figures.join("  ·  "))
}
