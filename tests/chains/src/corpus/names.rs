//! The name of the leaf: X.509-SVID sections 2 and 5.2, SPIFFE-ID section 2.

use rcgen::SanType;

use super::{Case, SUBJECT_ALT_NAME, UNHEARD_OF, changed, refused, with, with_uri};
use crate::recipe::{Recipe, WEB, extension, leaf, uri};

pub(super) static CASES: &[Case] = &[
    // How many URIs there are.
    refused("no-names", "no-uri-san", || with(|r| r.leaf.subject_alt_names.clear())),
    refused("dns-name-only", "no-uri-san", || with(|r| drop(r.leaf.subject_alt_names.remove(0)))),
    refused("spiffe-id-as-email", "no-uri-san", || {
        with(|r| r.leaf.subject_alt_names = vec![SanType::Rfc822Name(WEB.try_into().unwrap())])
    }),
    refused("spiffe-id-as-dns-name", "no-uri-san", || {
        with(|r| r.leaf.subject_alt_names = vec![SanType::DnsName(WEB.try_into().unwrap())])
    }),
    refused("two-spiffe-ids", "several-uri-sans", || {
        with(|r| r.leaf.subject_alt_names.push(uri("spiffe://cluster.local/ns/shop/sa/orders")))
    }),
    refused("the-same-spiffe-id-twice", "several-uri-sans", || with(|r| r.leaf.subject_alt_names.push(uri(WEB)))),
    refused("spiffe-id-and-web-address", "several-uri-sans", || {
        with(|r| r.leaf.subject_alt_names.push(uri("https://example.org")))
    }),
    refused("names-malformed", "malformed", || names(&[0x30, 0x03, 0x86, 0x05, 0x61])),
    refused("names-with-trailing-bytes", "malformed", || names(&[0x30, 0x03, 0x86, 0x01, 0x61, 0x05, 0x00])),
    refused("uri-not-ascii", "malformed", || names(&[0x30, 0x04, 0x86, 0x02, 0xc3, 0xbc])),
    refused("uri-not-utf8", "malformed", || names(&[0x30, 0x03, 0x86, 0x01, 0xff])),
    refused("names-twice", "duplicate-extension", || {
        with(|r| r.leaf.custom_extensions.push(extension(SUBJECT_ALT_NAME, false, &[0x30, 0x03, 0x86, 0x01, 0x61])))
    }),
    // The scheme.
    refused("scheme-https", "bad-spiffe-id", || with_uri("https://cluster.local/ns/shop/sa/web")),
    refused("scheme-upper-case", "bad-spiffe-id", || with_uri("SPIFFE://cluster.local/ns/shop/sa/web")),
    refused("scheme-one-slash", "bad-spiffe-id", || with_uri("spiffe:/cluster.local/ns/shop/sa/web")),
    refused("scheme-no-slash", "bad-spiffe-id", || with_uri("spiffe:cluster.local/ns/shop/sa/web")),
    refused("scheme-missing", "bad-spiffe-id", || with_uri("//cluster.local/ns/shop/sa/web")),
    refused("uri-empty", "bad-spiffe-id", || with_uri("")),
    refused("uri-begins-with-space", "bad-spiffe-id", || with_uri(" spiffe://cluster.local/ns/shop/sa/web")),
    // The trust domain.
    refused("trust-domain-empty", "bad-spiffe-id", || with_uri("spiffe:///ns/shop/sa/web")),
    refused("trust-domain-upper-case", "bad-spiffe-id", || with_uri("spiffe://Cluster.local/ns/shop/sa/web")),
    refused("trust-domain-with-port", "bad-spiffe-id", || with_uri("spiffe://cluster.local:443/ns/shop/sa/web")),
    refused("trust-domain-with-empty-port", "bad-spiffe-id", || with_uri("spiffe://cluster.local:/ns/shop/sa/web")),
    refused("trust-domain-with-user", "bad-spiffe-id", || with_uri("spiffe://web@cluster.local/ns/shop/sa/web")),
    refused("trust-domain-with-empty-user", "bad-spiffe-id", || with_uri("spiffe://@cluster.local/ns/shop/sa/web")),
    refused("trust-domain-percent-encoded", "bad-spiffe-id", || with_uri("spiffe://cluster%2elocal/ns/shop/sa/web")),
    refused("trust-domain-with-star", "bad-spiffe-id", || with_uri("spiffe://*.local/ns/shop/sa/web")),
    refused("trust-domain-ipv6", "bad-spiffe-id", || with_uri("spiffe://[fd00::1]/ns/shop/sa/web")),
    refused("trust-domain-with-query", "bad-spiffe-id", || with_uri("spiffe://cluster.local?ns=shop")),
    refused("trust-domain-with-fragment", "bad-spiffe-id", || with_uri("spiffe://cluster.local#web")),
    refused("trust-domain-256-bytes", "bad-spiffe-id", || {
        with_uri(&format!("spiffe://{}/ns/shop/sa/web", "a".repeat(256)))
    }),
    // The path.
    refused("path-missing", "bad-spiffe-id", || with_uri("spiffe://cluster.local")),
    refused("path-only-a-slash", "bad-spiffe-id", || with_uri("spiffe://cluster.local/")),
    refused("path-with-trailing-slash", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop/sa/web/")),
    refused("path-with-empty-segment", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns//sa/web")),
    refused("path-begins-with-two-slashes", "bad-spiffe-id", || with_uri("spiffe://cluster.local//ns/shop/sa/web")),
    refused("path-with-dot-segment", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/./shop/sa/web")),
    refused("path-with-dot-dot-segment", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/bank/../shop/sa/web")),
    refused("path-ends-in-dot-dot", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop/sa/web/..")),
    refused("path-percent-encoded-letter", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop/sa/%77eb")),
    refused("path-percent-encoded-slash", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop%2fsa%2fweb")),
    refused("path-percent-encoded-dots", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/%2e%2e/sa/web")),
    refused("path-bare-percent", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop/sa/web%")),
    refused("path-with-query", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop/sa/web?a=b")),
    refused("path-with-empty-query", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop/sa/web?")),
    refused("path-with-fragment", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop/sa/web#a")),
    refused("path-with-empty-fragment", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop/sa/web#")),
    refused("path-with-star", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop/sa/*")),
    refused("path-with-colon", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop/sa/web:1")),
    refused("path-with-tilde", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop/sa/~web")),
    refused("path-with-space", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop/sa/web ")),
    refused("path-with-nul", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns/shop/sa/web\0.evil")),
    refused("path-with-backslash", "bad-spiffe-id", || with_uri("spiffe://cluster.local/ns\\shop\\sa\\web")),
    refused("spiffe-id-2049-bytes", "bad-spiffe-id", || {
        let begin = "spiffe://cluster.local/";
        with_uri(&format!("{begin}{}", "p".repeat(2049 - begin.len())))
    }),
    // Whose name it is.
    refused("foreign-trust-domain", "unknown-trust-domain", || with_uri("spiffe://other.example/ns/shop/sa/web")),
    refused("foreign-trust-domain-that-is-trusted-too", "unknown-authority", || {
        // Both have a bundle here, and ours vouches for an ID of theirs.
        let mut theirs = Recipe::good();
        theirs.root = crate::ca("their root");
        let mut presented = with_uri("spiffe://other.example/ns/shop/sa/web");
        presented.bundles.push(("other.example".to_owned(), vec![theirs.make().root]));
        presented
    }),
    refused("trust-domain-below-ours", "unknown-trust-domain", || {
        with_uri("spiffe://sub.cluster.local/ns/shop/sa/web")
    }),
    refused("trust-domain-with-final-dot", "unknown-trust-domain", || {
        with_uri("spiffe://cluster.local./ns/shop/sa/web")
    }),
    refused("our-name-by-a-foreign-root", "unknown-authority", || {
        changed(|presented| {
            let mut ours = Recipe::good();
            ours.root = crate::ca("our root");
            presented.bundles[0].1 = vec![ours.make().root];
        })
    }),
    refused("our-name-by-a-root-of-the-same-name", "bad-signature", || {
        changed(|presented| presented.bundles[0].1 = vec![Recipe::good().make().root])
    }),
    refused("our-name-by-the-root-of-another-trust-domain", "unknown-authority", || {
        let mut theirs = Recipe::good();
        theirs.root = crate::ca("their root");
        theirs.leaf = leaf(&[WEB]);
        let made = theirs.make();
        changed(|presented| {
            presented.chain = made.chain;
            presented.key = made.leaf_key;
            presented.bundles.push(("other.example".to_owned(), vec![made.root]));
        })
    }),
    refused("unknown-extension-critical", "critical-extension", || {
        with(|r| r.leaf.custom_extensions.push(extension(UNHEARD_OF, true, &[5, 0])))
    }),
];

/// A leaf whose subject alternative name has this value.
fn names(value: &[u8]) -> super::Presented {
    with(|recipe| {
        recipe.leaf.subject_alt_names.clear();
        recipe.leaf.custom_extensions.push(extension(SUBJECT_ALT_NAME, false, value));
    })
}
