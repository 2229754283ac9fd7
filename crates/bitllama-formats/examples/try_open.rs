fn main() {
    for path in std::env::args().skip(1) {
        match bitllama_formats::model::open(std::path::Path::new(&path)) {
            Ok(model) => {
                let mut sum = 0.0f64;
                for spec in bitllama_core::weights::specs(&model.config) {
                    match model.weights.read(&spec) {
                        Ok(v) => sum += v.iter().map(|x| *x as f64).sum::<f64>(),
                        Err(e) => {
                            println!("{path}: {e}");
                            break;
                        }
                    }
                }
                println!("{path}: ok {} {sum}", model.config.arch.family);
            }
            Err(e) => println!("{path}: {e}"),
        }
    }
}
