//! PyPI, and what speaks as it does: pages of projects, their wheels, and what is written about these beside them.

// In the order in which to read them.
mod wheel;
pub use wheel::PythonTarget;

mod page;
pub(crate) use page::{ACCEPT, Page, Unusable, Wheel};

mod json;

mod html;

mod listed;
pub(crate) use listed::Metadata;

mod render;
pub(crate) use render::{Form, render};

mod metadata;
pub(crate) use metadata::{dependencies, extract, without};
