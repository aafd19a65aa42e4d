# fish completion for llamacli; written by python -m llamacli.cli.completions

function __llamacli_models
    set -l cache $HOME/.cache
    set -q XDG_CACHE_HOME; and set cache $XDG_CACHE_HOME
    set -l hub $cache/huggingface/hub
    set -q HF_HOME; and set hub $HF_HOME/hub
    set -q HF_HUB_CACHE; and set hub $HF_HUB_CACHE
    __fish_complete_directories (commandline -ct)
    set -l models $hub/models--*/
    string replace -r '.*/models--(.*)/$' '$1' $models | string replace -a -- -- /
end

complete -c llamacli -f
complete -c llamacli -n __fish_use_subcommand -l version -d 'Show the version'
complete -c llamacli -n __fish_use_subcommand -l debug -d 'Show tracebacks and what libraries print'
complete -c llamacli -n __fish_use_subcommand -s h -l help -d 'Show this message and exit'
complete -c llamacli -n __fish_use_subcommand -a run -d 'Continue a text, or answer it where the model has a chat template'
complete -c llamacli -n '__fish_seen_subcommand_from run' -s m -l model -x -a '(__llamacli_models)' -d 'A folder or a Hugging Face name'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l revision -x -d 'Branch, tag or commit of the model'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l offline -d 'Use only what was downloaded before'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l device -x -d 'auto, cpu, cuda, cuda:1 or mps'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l dtype -x -a 'auto float32 bfloat16 float16' -d 'Number format of the weights'
complete -c llamacli -n '__fish_seen_subcommand_from run' -s t -l threads -x -d 'CPU threads'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l cache-implementation -x -a 'dynamic static' -d 'Grow the cache, or allocate it at once'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l attn-implementation -x -a 'sdpa eager' -d 'Fused attention, or plain matrix products'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l check-tensors -d 'Look for NaN and infinity in the weights'
complete -c llamacli -n '__fish_seen_subcommand_from run' -s f -l prompt-file -r -F -d 'Read the prompt from a file; - is stdin'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l lines -d 'Each line is a prompt'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l jsonl -d 'Each line is a request as a JSON object, and an answer'
complete -c llamacli -n '__fish_seen_subcommand_from run' -s 0 -l null -d 'Prompts and answers end with NUL, not newline'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l raw -d 'Continue the text as it is, without chat template'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l system -x -d 'System message of the chat'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l prefill -x -d 'Start of the answer'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l chat-template -r -F -d 'llama2, llama3 or a Jinja file'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l parse-special -d 'Special tokens in the prompt have an effect'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l truncate -x -a 'left right middle' -d 'Cut a prompt that is longer than the context on this side'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l batch-size -x -d 'Prompts that are run together'
complete -c llamacli -n '__fish_seen_subcommand_from run' -s n -l max-new-tokens -x -d 'The most tokens to generate; -1 fills the context'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l min-new-tokens -x -d 'The fewest tokens to generate'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l stop -x -d 'End before this text. Repeatable; blanks separate several in LLAMACLI_STOP'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l ignore-eos -d 'Go on where the model would end'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l seed -x -d 'Same seed, same text'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l greedy -d 'Always take the most probable token'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l temperature -x -d 'Below 1 is safer, above 1 is bolder, 0 is greedy'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l top-k -x -d 'Choose among the K best tokens; 0 is all'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l top-p -x -d 'Choose among the best tokens with probability P'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l min-p -x -d 'Drop tokens below P times the best probability'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l typical-p -x -d 'Keep locally typical tokens with probability P'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l repetition-penalty -x -d 'Divide the scores of tokens seen before; 1 is off'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l presence-penalty -x -d 'Lower the scores of tokens generated before'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l frequency-penalty -x -d 'Lower them for each time they were generated'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l no-repeat-ngram-size -x -d 'No sequence of so many tokens twice; 0 is off'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l logit-bias -x -d 'Add to the score of a token, by id or text; -inf bans it. Repeatable'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l num-samples -x -d 'Answers to each prompt'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l json -d 'One JSON object with text, token ids and counts'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l logprobs -x -d 'Show log-probabilities, and those of so many alternatives'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l stats -d 'Tell times and speed on stderr afterwards'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l show-config -d 'Show the sampling parameters and where they come from'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l color -x -a 'auto always never' -d 'Color on stdout'
complete -c llamacli -n '__fish_seen_subcommand_from run' -s q -l quiet -d 'No notes on stderr, only errors'
complete -c llamacli -n '__fish_seen_subcommand_from run' -l debug -d 'Show tracebacks and what libraries print'
complete -c llamacli -n '__fish_seen_subcommand_from run' -s h -l help -d 'Show this message and exit'
