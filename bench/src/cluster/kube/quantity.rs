//! Kubernetes' way of writing amounts: `250m`, `128Mi`, `1e3`.

/// Thousandths.
pub fn millis(text: &str) -> Option<f64> {
    Some(value(text)? * 1000.0)
}

/// Whole units: bytes.
pub fn units(text: &str) -> Option<f64> {
    value(text)
}

fn value(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 16] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
        ("", 1.0),
    ];
    if let Ok(plain) = text.parse::<f64>() {
        return Some(plain);
    }
    SUFFIXES.iter().find_map(|(suffix, factor)| {
        let number: f64 = text.strip_suffix(suffix)?.parse().ok()?;
        Some(number * factor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, expected) in [
            ("250m", 250.0),
            ("2", 2000.0),
            ("1.5", 1500.0),
            ("1e-1", 100.0),
        ] {
            assert_eq!(millis(text), Some(expected), "{text}");
        }
        for (text, expected) in [
            ("128Mi", 134_217_728.0),
            ("1G", 1e9),
            ("1e3", 1000.0),
            ("0", 0.0),
        ] {
            assert_eq!(units(text), Some(expected), "{text}");
        }
        assert_eq!(units("much"), None);
    }
}
