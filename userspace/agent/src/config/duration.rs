//! `10s`, `1h 30m`: humantime's form.

use std::time::Duration;

use serde::Deserialize;

pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(d)?;
    humantime::parse_duration(&text).map_err(|e| {
        serde::de::Error::custom(format!(
            "{text:?} is no duration ({e}): write for example 10s, 5m or 1h 30m"
        ))
    })
}
