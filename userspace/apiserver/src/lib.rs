//! A Kubernetes API server: kinds of it followed, and single questions asked.
//!
//! The node engine and the CA both live on it. A [`Follower`] lists and watches one kind and hands on what is left of its
//! objects after trimming; [`ApiServer`] holds the credentials and asks for single objects. Whatever goes wrong is a
//! [`Fault`], which says who is to blame and, of a right that is missing, which verb on which resource; [`Health`] tells
//! how each kind is heard.
//!
//! Plain requests over `kube`'s client instead of its typed API: what is not on a kind's list is never decoded, and no
//! answer ends up in somebody else's log. It knows nothing of what the objects mean.

mod ask;
mod clock;
mod connect;
mod fault;
mod follow;
mod health;
mod patience;
mod resource;
mod seen;
#[cfg(feature = "testing")]
pub mod testing;
mod trim;

pub use ask::{Created, Place, Replaced};
pub use connect::{ApiServer, ConnectError};
pub use fault::Fault;
pub use follow::{Follower, Heard};
pub use health::{Health, KindHealth};
pub use resource::{Kind, Resource};
pub use seen::Seen;
pub use trim::{Keep, Trimmed};
