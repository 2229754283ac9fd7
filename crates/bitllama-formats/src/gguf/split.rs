//! Models in several files, as `llama-gguf-split` writes them: `NAME-00001-of-00003.gguf` and so on. The first holds the
//! model's metadata; each holds tensors of its own, or none, and says which part of how many it is.

use std::path::Path;

use super::Gguf;
use crate::{Error, Result};

/// The file names of all parts of the set to which `name` belongs, in order; `None` for a name that is no part's.
pub fn part_names(name: &str) -> Option<Vec<String>> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let five = |digits: &str| digits.parse::<usize>().ok().filter(|_| digits.len() == 5);
    let (number, count) = (five(number)?, five(count)?);
    let all = || (1..=count).map(|part| format!("{stem}-{part:05}-of-{count:05}.gguf")).collect();
    (1..=count).contains(&number).then(all)
}

/// The model to which a file belongs: of a part, whichever it is, the whole set.
///
/// # Errors
/// [`Error`] if the file is not named as the part that it is, another part is missing, damaged or of another set, or the
/// parts together do not hold as many tensors as they say.
pub(super) fn complete(given: Gguf) -> Result<Gguf> {
    let Some((part, count)) = place(&given)? else { return Ok(given) };
    let names = given.path().file_name().and_then(|name| name.to_str()).and_then(part_names);
    let fits = |names: &Vec<String>| names.len() == count && given.path().ends_with(&names[part]);
    let names = names.filter(fits).ok_or_else(|| {
        let (number, end) = (part + 1, format!("-{:05}-of-{count:05}.gguf", part + 1));
        given.invalid(format!("is part {number} of {count} of a split GGUF; its name must end in {end}"))
    })?;
    let open = |part: usize| {
        let path = given.path().with_file_name(&names[part]);
        if !path.is_file() {
            return Err(Error::invalid(path, format!("is missing: part {} of {count} of a split GGUF", part + 1)));
        }
        let file = Gguf::one(&path)?;
        match place(&file)? == Some((part, count)) && total(&file)? == total(&given)? {
            true => Ok(file),
            false => Err(file.invalid(format!("is not the part of {} that its name says", shown(given.path())))),
        }
    };
    let mut whole = open(0)?;
    for part in 1..count {
        whole.absorb(open(part)?)?;
    }
    match total(&whole)?.filter(|stated| *stated != whole.tensor_count()) {
        Some(stated) => {
            let found = whole.tensor_count();
            Err(whole.invalid(format!("split.tensors.count = {stated}, but the {count} parts have {found} tensors")))
        }
        None => Ok(whole),
    }
}

/// The part number of a file, counted from 0, and the number of parts; `None` for a whole model.
fn place(file: &Gguf) -> Result<Option<(usize, usize)>> {
    let Some(count) = file.whole("split.count")?.filter(|count| *count > 1) else { return Ok(None) };
    let part = file.required("split.no", Gguf::whole)?;
    match part < count {
        true => Ok(Some((part, count))),
        false => Err(file.invalid(format!("split.no = {part} is no part of split.count = {count}"))),
    }
}

/// Tensors of all parts.
fn total(file: &Gguf) -> Result<Option<usize>> {
    file.whole("split.tensors.count")
}

fn shown(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
