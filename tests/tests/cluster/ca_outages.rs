//! The CA away, and the API server away: what was issued goes on, nothing is issued that could not be checked, and it heals
//! by itself. That traffic goes on without an API server is `mesh`'s to show.

use anyhow::{Result, bail, ensure};
use signet_testkit::need::Need;
use signet_testkit::wait;

use crate::issuing::{self, IDENTITY};
use crate::shared::WITHIN;

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    svids_outlive_a_ca_that_is_down_across_a_rotation_and_rotate_when_it_is_back,
    nothing_is_signed_while_the_api_server_is_away_and_it_heals_by_itself,
);

fn svids_outlive_a_ca_that_is_down_across_a_rotation_and_rotate_when_it_is_back() -> Result<()> {
    let issuing = issuing::alone()?;
    let replicas = issuing.signet.ca().replicas();
    // Of a fresh SVID half a life is left until the next rotation, and as much after it.
    issuing.wait_for_rotation(&issuing.serial()?)?;
    replicas.iter().try_for_each(|replica| replica.stop())?;
    let outlived = issuing.serial()?;
    issuing.wait_for_failure()?;
    issuing.flows()?;
    ensure!(issuing.serial()? == outlived, "it rotated without a CA");
    replicas.iter().try_for_each(|replica| replica.start(&issuing.cluster))?;
    issuing.wait_for_rotation(&outlived)?;
    issuing.flows()
}

fn nothing_is_signed_while_the_api_server_is_away_and_it_heals_by_itself() -> Result<()> {
    let issuing = issuing::alone()?;
    let (cluster, ca) = (&issuing.cluster, issuing.signet.ca());
    // One that the CA has not seen: it could remember the others for a moment.
    let token = cluster.node_token("n1")?;
    let replicas = ca.replicas();
    cluster.component("kube-apiserver")?.stop()?;
    for replica in replicas {
        let Err(error) = replica.svid_with(cluster, ca.roots(), &token, IDENTITY) else {
            bail!("signed without a review")
        };
        ensure!(format!("{error:#}").contains("cannot check tokens now"), "{error:#}");
        wait::until("readiness tells of the outage", WITHIN, || {
            let page = replica.page(cluster, "/healthz/ready")?;
            ensure!(page.contains("ready; for") && page.contains("stays in force"), "{page}");
            Ok(())
        })?;
    }
    cluster.component("kube-apiserver")?.start()?;
    cluster.wait_for_api_server()?;
    for replica in replicas {
        wait::until("it signs again", WITHIN, || {
            replica.svid_with(cluster, ca.roots(), &token, IDENTITY).map(drop)
        })?;
        wait::until("readiness is whole again", WITHIN, || {
            let page = replica.page(cluster, "/healthz/ready")?;
            ensure!(page.trim() == "ready", "{page}");
            Ok(())
        })?;
        // An API server that has just started refuses everybody for a moment.
        ensure!(!replica.log()?.contains("lacks the verb"), "told as a missing right: {}", replica.log()?);
    }
    // SVIDs of these engines live for seconds, and may have run out.
    wait::until("traffic flows", WITHIN, || issuing.flows())
}
