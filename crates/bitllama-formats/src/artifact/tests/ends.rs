//! The tokens that end a text, taken from files beside the manifest where the manifest does not name them.

use tokenizers::AddedToken;

use super::*;
use crate::companions::{GENERATION_CONFIG, TOKENIZER_CONFIG};

#[test]
fn ends_come_from_the_companions_and_for_older_manifests_from_names() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("artifact");
    let (config, weights) = (config(true), model(&config(true), &[Some(Scheme::Ternary)]));
    let mut tokenizer = tokenizer(10);
    tokenizer.add_special_tokens(&[AddedToken::from("</s>", true)]);
    let weights = weights.into_iter().map(Ok);
    write(&folder, &config, weights, &tokenizer, Layout::Packed, json!({})).unwrap();
    let ends = || {
        let artifact = Artifact::open(&folder).unwrap();
        let noted = artifact.notes.iter().any(|note| note.contains("</s> is taken to"));
        (artifact.config.eos_token_ids, artifact.config.end_token_ids, noted)
    };
    assert_eq!(ends(), (vec![2, 3], vec![], false));
    fs::write(folder.join(GENERATION_CONFIG), r#"{"eos_token_id": [3, 7]}"#).unwrap();
    assert_eq!(ends(), (vec![2, 3], vec![7], false));
    // A manifest of the older tools has no ids: the tokenizer's files tell, and names where there are none.
    edit_manifest(&folder, |manifest| _ = manifest.as_object_mut().unwrap().shift_remove("model_config"));
    assert_eq!(ends(), (vec![2], vec![3, 7], false));
    for name in [GENERATION_CONFIG, TOKENIZER_CONFIG] {
        fs::remove_file(folder.join(name)).unwrap();
    }
    assert_eq!(ends(), (vec![], vec![10], true));
}
