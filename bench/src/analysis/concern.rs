//! The four questions of a platform owner. Every scenario answers to one of them.

/// In the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    Cost,
    Harm,
    Life,
    Exposure,
}

impl Concern {
    pub const ALL: [Concern; 4] = [
        Concern::Cost,
        Concern::Harm,
        Concern::Life,
        Concern::Exposure,
    ];

    /// Of a scenario, by the letter of its id.
    pub fn of(scenario: &str) -> Concern {
        match scenario.chars().next() {
            // With the proxy dead, it is an eavesdropper who gains.
            _ if scenario == "F5" => Concern::Exposure,
            Some('I' | 'F') => Concern::Harm,
            Some('S' | 'U') => Concern::Life,
            Some('X') => Concern::Exposure,
            _ => Concern::Cost,
        }
    }

    pub fn question(self) -> &'static str {
        match self {
            Concern::Cost => "What does it cost me?",
            Concern::Harm => "Who gets hurt when something goes wrong?",
            Concern::Life => "What breaks in upgrades and Jobs?",
            Concern::Exposure => "What does an attacker get?",
        }
    }

    /// For links within a page.
    pub fn anchor(self) -> &'static str {
        match self {
            Concern::Cost => "cost",
            Concern::Harm => "harm",
            Concern::Life => "life",
            Concern::Exposure => "exposure",
        }
    }
}
