//! What the leaf may do: X.509-SVID sections 4 and 5.2, RFC 5280 section 4.2.

use rcgen::{BasicConstraints, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};

use super::{
    BASIC_CONSTRAINTS, Case, DIGITAL_SIGNATURE, EXTENDED_KEY_USAGE, KEY_USAGE, Presented, UNHEARD_OF, refused, with,
};
use crate::recipe::extension;

pub(super) static CASES: &[Case] = &[
    // basicConstraints.
    refused("leaf-is-an-authority", "not-a-leaf", || {
        with(|r| r.leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))
    }),
    refused("leaf-is-an-authority-of-length-0", "not-a-leaf", || {
        with(|r| r.leaf.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)))
    }),
    refused("leaf-without-basic-constraints", "basic-constraints", || with(|r| r.leaf.is_ca = IsCa::NoCa)),
    refused("leaf-basic-constraints-cut-short", "malformed", || basic_constraints(&[0x30, 0x03, 0x01, 0x01])),
    refused("leaf-basic-constraints-with-trailing-bytes", "malformed", || basic_constraints(&[0x30, 0, 0x05, 0])),
    refused("leaf-basic-constraints-empty", "malformed", || basic_constraints(&[])),
    refused("leaf-path-length-without-authority", "malformed", || basic_constraints(&[0x30, 0x03, 0x02, 0x01, 0])),
    refused("leaf-basic-constraints-twice", "duplicate-extension", || {
        with(|r| r.leaf.custom_extensions.push(extension(BASIC_CONSTRAINTS, true, &[0x30, 0])))
    }),
    // keyUsage.
    refused("leaf-without-key-usage", "key-usage", || with(|r| r.leaf.key_usages.clear())),
    refused("leaf-key-usage-not-critical", "key-usage", || key_usage(false, DIGITAL_SIGNATURE)),
    refused("leaf-key-usage-without-digital-signature", "key-usage", || usages(&[KeyUsagePurpose::KeyAgreement])),
    refused("leaf-key-usage-of-no-bits", "key-usage", || key_usage(true, &[0x03, 0x01, 0])),
    refused("leaf-may-sign-certificates", "key-usage", || also(KeyUsagePurpose::KeyCertSign)),
    refused("leaf-may-sign-revocations", "key-usage", || also(KeyUsagePurpose::CrlSign)),
    refused("leaf-may-commit-to-content", "key-usage", || also(KeyUsagePurpose::ContentCommitment)),
    refused("leaf-may-encipher-data", "key-usage", || also(KeyUsagePurpose::DataEncipherment)),
    refused("leaf-may-decipher-only", "key-usage", || also(KeyUsagePurpose::DecipherOnly)),
    refused("leaf-key-usage-is-no-bit-string", "malformed", || key_usage(true, &[0x04, 0x01, 0x80])),
    refused("leaf-key-usage-cut-short", "malformed", || key_usage(true, &[0x03, 0x02, 0x07])),
    refused("leaf-key-usage-with-trailing-bytes", "malformed", || key_usage(true, &[0x03, 0x02, 0x07, 0x80, 0])),
    refused("leaf-key-usage-twice", "duplicate-extension", || {
        with(|r| r.leaf.custom_extensions.push(extension(KEY_USAGE, true, DIGITAL_SIGNATURE)))
    }),
    // extendedKeyUsage.
    refused("leaf-for-servers-only", "extended-key-usage", || purposes(&[ExtendedKeyUsagePurpose::ServerAuth])),
    refused("leaf-for-clients-only", "extended-key-usage", || purposes(&[ExtendedKeyUsagePurpose::ClientAuth])),
    refused("leaf-for-any-purpose", "extended-key-usage", || purposes(&[ExtendedKeyUsagePurpose::Any])),
    refused("leaf-for-signing-code", "extended-key-usage", || purposes(&[ExtendedKeyUsagePurpose::CodeSigning])),
    refused("leaf-extended-key-usage-empty", "extended-key-usage", || extended_key_usage(&[0x30, 0])),
    refused("leaf-extended-key-usage-malformed", "malformed", || extended_key_usage(&[0x30, 0x02, 0x06, 0x05])),
    // Others.
    refused("leaf-extension-twice", "duplicate-extension", || {
        let unknown = || extension(UNHEARD_OF, false, &[5, 0]);
        with(|r| r.leaf.custom_extensions.extend([unknown(), unknown()]))
    }),
];

fn also(usage: KeyUsagePurpose) -> Presented {
    with(|recipe| recipe.leaf.key_usages.push(usage))
}

fn usages(usages: &[KeyUsagePurpose]) -> Presented {
    with(|recipe| recipe.leaf.key_usages = usages.to_vec())
}

fn purposes(purposes: &[ExtendedKeyUsagePurpose]) -> Presented {
    with(|recipe| recipe.leaf.extended_key_usages = purposes.to_vec())
}

fn basic_constraints(value: &[u8]) -> Presented {
    with(|recipe| {
        recipe.leaf.is_ca = IsCa::NoCa;
        recipe.leaf.custom_extensions.push(extension(BASIC_CONSTRAINTS, true, value));
    })
}

fn key_usage(critical: bool, value: &[u8]) -> Presented {
    with(|recipe| {
        recipe.leaf.key_usages.clear();
        recipe.leaf.custom_extensions.push(extension(KEY_USAGE, critical, value));
    })
}

fn extended_key_usage(value: &[u8]) -> Presented {
    with(|recipe| {
        recipe.leaf.extended_key_usages.clear();
        let written: CustomExtension = extension(EXTENDED_KEY_USAGE, false, value);
        recipe.leaf.custom_extensions.push(written);
    })
}
