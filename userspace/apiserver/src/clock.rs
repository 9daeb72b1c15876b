//! How far this node's clock is from the API server's: certificates are judged by it.
//!
//! By the `Date` of an answer (RFC 9110 §6.6.1), which is whole seconds and as old as the way back: enough to see a clock
//! that makes certificates expire early or begin late.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Request, header};
use kube::client::Body;

use crate::connect::ApiServer;

impl ApiServer {
    /// Compares its clock with ours: what was seen; or what is wrong, and what to do.
    ///
    /// # Errors
    /// The clocks are more than five seconds apart.
    pub async fn compare_clocks(&self) -> Result<String, String> {
        match tokio::time::timeout(PATIENCE, self.time()).await {
            Ok(Some(theirs)) => judge(theirs, SystemTime::now()),
            // That it does not answer is said by the line of the source.
            Ok(None) | Err(_) => Ok("the API server does not say the time: not compared".into()),
        }
    }

    async fn time(&self) -> Option<SystemTime> {
        let request = Request::get("/version").body(Body::empty()).ok()?;
        let answer = self.client.send(request).await.ok()?;
        httpdate::parse_http_date(answer.headers().get(header::DATE)?.to_str().ok()?).ok()
    }
}

fn judge(theirs: SystemTime, ours: SystemTime) -> Result<String, String> {
    let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let apart = since(theirs).abs_diff(since(ours));
    if apart <= TOLERANCE {
        return Ok("as the API server's".into());
    }
    let side = if ours > theirs { "ahead of" } else { "behind" };
    let apart = humantime::format_duration(Duration::from_secs(apart.as_secs()));
    Err(format!(
        "{apart} {side} the API server's: certificates will be refused; synchronise both (chrony, systemd-timesyncd)"
    ))
}

/// A second for the fraction that `Date` has not, the rest for the way.
const TOLERANCE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_named_with_its_side() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert!(judge(now, now + Duration::from_secs(4)).is_ok());
        let ahead = judge(now, now + Duration::from_secs(150)).unwrap_err();
        assert!(ahead.starts_with("2m 30s ahead of the API server's"), "{ahead}");
        let behind = judge(now + Duration::from_secs(3600), now).unwrap_err();
        assert!(behind.starts_with("1h behind the API server's"), "{behind}");
    }
}
