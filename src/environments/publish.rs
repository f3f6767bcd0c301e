//! What the queue publishes: the current revision of each environment.

use std::fs::File;

use super::error::EnvironmentsError;
use super::offers::{Offer, OfferList};
use super::queue::Queue;
use super::{Environment, RESULT};
use crate::image::Reference;
use crate::os;

/// The host in names of images that a builder without a registry makes.
pub const NO_REGISTRY: &str = "localhost";

/// The right to publish the list of a queue. A list that is older than another one cannot replace it while this is held.
#[derive(Debug)]
pub struct PublishLock {
    file: File,
}

impl Drop for PublishLock {
    fn drop(&mut self) {
        os::unlock(&self.file);
    }
}

impl Queue {
    /// Waits until no other process publishes the list.
    ///
    /// # Errors
    ///
    /// Another process publishes for too long.
    pub fn lock_publishing(&self) -> Result<PublishLock, EnvironmentsError> {
        Ok(PublishLock { file: self.lock_file("publishing")? })
    }

    /// The list of what workers are to offer. Fields that this program does not know are taken from `published`.
    ///
    /// # Errors
    ///
    /// A revision is damaged: it may be the current one. Or an image is in no registry.
    pub fn offers(&self, published: &OfferList) -> Result<OfferList, EnvironmentsError> {
        let mut offers = Vec::new();
        for mut environment in self.environments()? {
            if let Some(damaged) = environment.damaged.pop() {
                return Err(damaged);
            }
            offers.extend(offer(&environment, published)?);
        }
        Ok(OfferList::new(offers))
    }
}

fn offer(environment: &Environment, published: &OfferList) -> Result<Option<Offer>, EnvironmentsError> {
    let Some(current) = environment.current() else { return Ok(None) };
    let image = current.result.as_ref().and_then(super::BuildResult::image);
    let Some(image) = image.filter(|image| image.digest.is_some()) else {
        let reason = "it names no image with a digest".to_owned();
        return Err(EnvironmentsError::Damaged { path: current.path.join(RESULT), reason });
    };
    // It means another image on each host.
    if image.name.host() == Some(NO_REGISTRY) {
        return Err(EnvironmentsError::LocalImage(current.id.clone()));
    }
    let submission = &current.submission;
    Ok(Some(Offer {
        id: environment.id.clone(),
        image: Reference { tag: None, ..image },
        revision: current.id.number,
        platform: submission.platform.clone(),
        hwgroups: submission.hwgroups.clone(),
        smoke: submission.smoke.clone(),
        unknown: published.get(&environment.id).map(|offer| offer.unknown.clone()).unwrap_or_default(),
    }))
}
