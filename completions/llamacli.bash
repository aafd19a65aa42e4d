# bash completion for llamacli; written by python -m llamacli.cli.completions

_llamacli_words() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
}

_llamacli_files() {
    compopt -o default 2>/dev/null
}

_llamacli_models() {
    local hub=${HF_HUB_CACHE:-${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}/hub} model
    for model in "$hub"/models--*/; do
        model=${model%/} model=${model##*/models--} model=${model//--//}
        [[ $model != "*" && $model == "$cur"* ]] && COMPREPLY+=("$model")
    done
}

_llamacli() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command= word
    if [[ $cur == "=" ]]; then # bash takes --name=value apart
        cur=
    elif [[ $prev == "=" ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ $word != -* ]] && command=$word && break
    done
    COMPREPLY=()
    case "$command $prev" in
        "run -m" | "run --model") compopt -o plusdirs 2>/dev/null; _llamacli_models; return ;;
        "run --revision") return ;;
        "run --backend") _llamacli_words "torch flax"; return ;;
        "run --device") return ;;
        "run --device-map") return ;;
        "run --max-memory") return ;;
        "run --offload-folder") _llamacli_files; return ;;
        "run --tp") return ;;
        "run --dtype") _llamacli_words "auto float32 bfloat16 float16"; return ;;
        "run --quantize") _llamacli_words "int4 int8"; return ;;
        "run --activations") _llamacli_words "auto int8"; return ;;
        "run -t" | "run --threads") return ;;
        "run --cache-implementation") _llamacli_words "dynamic static"; return ;;
        "run --attn-implementation") _llamacli_words "sdpa eager flash_attention_2"; return ;;
        "run --lookup") return ;;
        "run -f" | "run --input" | "run --prompt-file") _llamacli_files; return ;;
        "run --system") return ;;
        "run --prefill") return ;;
        "run --chat-template") _llamacli_files; return ;;
        "run --truncate") _llamacli_words "left right middle"; return ;;
        "run --batch-size") return ;;
        "run -n" | "run --max-new-tokens") return ;;
        "run --min-new-tokens") return ;;
        "run --stop") return ;;
        "run --seed") return ;;
        "run --temperature") return ;;
        "run --top-k") return ;;
        "run --top-p") return ;;
        "run --min-p") return ;;
        "run --typical-p") return ;;
        "run --repetition-penalty") return ;;
        "run --presence-penalty") return ;;
        "run --frequency-penalty") return ;;
        "run --no-repeat-ngram-size") return ;;
        "run --logit-bias") return ;;
        "run --task") _llamacli_words "text-generation text-classification token-classification question-answering"; return ;;
        "run --format") _llamacli_words "json csv pipe"; return ;;
        "run --column") return ;;
        "run --aggregation-strategy") _llamacli_words "none simple first average max"; return ;;
        "run --output") _llamacli_files; return ;;
        "run --num-samples") return ;;
        "run --logprobs") return ;;
        "run --color") _llamacli_words "auto always never"; return ;;
        "download --revision") return ;;
        "download --include") return ;;
        "download --exclude") return ;;
        "download --to") _llamacli_files; return ;;
        "quantize --revision") return ;;
        "quantize --bits") _llamacli_words "4 8"; return ;;
        "quantize --group-size") _llamacli_words "32 64 128 256"; return ;;
        "quantize --algorithm") _llamacli_words "rtn mse hqq"; return ;;
        "quantize --skip") return ;;
        "quantize --mixed") return ;;
        "quantize --text") _llamacli_files; return ;;
        "quantize --target-kl") return ;;
        "quantize -o" | "quantize --output") _llamacli_files; return ;;
        "quantize --report") _llamacli_files; return ;;
        "quantize -t" | "quantize --threads") return ;;
        "visualize-mask -m" | "visualize-mask --model") compopt -o plusdirs 2>/dev/null; _llamacli_models; return ;;
        "visualize-mask --revision") return ;;
        "visualize-mask -f" | "visualize-mask --prompt-file") _llamacli_files; return ;;
        "visualize-mask --tokens") return ;;
        "visualize-mask --sliding-window") return ;;
        "visualize-mask --padding") _llamacli_words "left right"; return ;;
        "visualize-mask --prefix-length") return ;;
        "visualize-mask --step") return ;;
        "visualize-mask --static-cache") return ;;
        "visualize-mask --layer") return ;;
        "visualize-mask --head") return ;;
        "visualize-mask -o" | "visualize-mask --output") _llamacli_files; return ;;
        "visualize-mask --color") _llamacli_words "auto always never"; return ;;
        "bench --shape") return ;;
        "bench --revision") return ;;
        "bench --backend") _llamacli_words "torch flax"; return ;;
        "bench --device") return ;;
        "bench --dtype") _llamacli_words "auto float32 bfloat16 float16"; return ;;
        "bench --quantize") return ;;
        "bench --activations") _llamacli_words "auto int8"; return ;;
        "bench -p" | "bench --n-prompt") return ;;
        "bench -n" | "bench --n-gen") return ;;
        "bench --pg") return ;;
        "bench -d" | "bench --n-depth") return ;;
        "bench -b" | "bench --batch-size") return ;;
        "bench -t" | "bench --threads") return ;;
        "bench --tp") return ;;
        "bench -r" | "bench --repetitions") return ;;
        "bench --versus") return ;;
        "bench -o" | "bench --output-format") _llamacli_words "md csv json jsonl"; return ;;
        "bench --compare") _llamacli_files; return ;;
        "bench --fail-under") return ;;
        "bench --plot") _llamacli_files; return ;;
    esac
    case "$command" in
        "") _llamacli_words "run download quantize visualize-mask bench --version --debug -h --help" ;;
        run) if [[ $cur == -* ]]; then _llamacli_words "-m --model --revision --offline --backend --device --device-map --max-memory --offload-folder --compile --tp --dtype --quantize --activations -t --threads --cache-implementation --attn-implementation --lookup --check-tensors -f --input --prompt-file --lines --jsonl -0 --null --raw --system --prefill --chat-template --parse-special --truncate --batch-size -n --max-new-tokens --min-new-tokens --stop --ignore-eos --seed --greedy --temperature --top-k --top-p --min-p --typical-p --repetition-penalty --presence-penalty --frequency-penalty --no-repeat-ngram-size --logit-bias --task --format --column --aggregation-strategy --output --num-samples --json --logprobs --stats --show-config --plan --color -q --quiet --debug -h --help"; fi ;;
        download) if [[ $cur == -* ]]; then _llamacli_words "--revision --offline --include --exclude --to --dry-run --list --verify --remove --json -q --quiet --debug -h --help"; else _llamacli_models; fi ;;
        quantize) if [[ $cur == -* ]]; then _llamacli_words "--revision --offline --bits --group-size --algorithm --skip --mixed --dequantize --evaluate --text --target-kl -o --output --force --dry-run --report -t --threads -q --quiet --debug -h --help"; else compopt -o plusdirs 2>/dev/null; _llamacli_models; fi ;;
        visualize-mask) if [[ $cur == -* ]]; then _llamacli_words "-m --model --revision --offline -f --prompt-file --tokens --sliding-window --padding --packed --prefix-length --step --static-cache --attention --layer --head -o --output --json --ascii --color -q --quiet --debug -h --help"; fi ;;
        bench) if [[ $cur == -* ]]; then _llamacli_words "--shape --revision --offline --backend --device --dtype --quantize --activations -p --n-prompt -n --n-gen --pg -d --n-depth -b --batch-size -t --threads --tp -r --repetitions --versus -o --output-format --compare --fail-under --plot -q --quiet --debug -h --help"; else compopt -o plusdirs 2>/dev/null; _llamacli_models; fi ;;
    esac
}

complete -F _llamacli llamacli
