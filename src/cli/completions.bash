# Completion of rcx-imagefs for bash. The program itself finds the candidates.
_rcx_imagefs() {
    # Bash splits words at `:`, `=` and `@`. Join the parts again, up to the cursor.
    local rest=${COMP_LINE:0:COMP_POINT} blank word i
    local -a words=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        blank=${rest%%[![:space:]]*}
        rest=${rest#"$blank"}
        word=${COMP_WORDS[i]}
        [[ $rest == "$word"* ]] || word=$rest
        rest=${rest#"$word"}
        if ((i == 0)) || [[ -n $blank ]]; then
            words+=("$word")
        else
            words[-1]+=$word
        fi
    done
    local IFS=$'\n'
    COMPREPLY=($(_RCX_IMAGEFS_COMPLETE=bash _CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$((${#words[@]} - 1)) \
        rcx-imagefs -- "${words[@]}" 2>/dev/null))
    # Readline replaces only the last part.
    local joined=${words[-1]}
    local before=${joined%"${joined##*[@:=]}"}
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
    if ((${#COMPREPLY[@]} == 1)) && [[ ${COMPREPLY[0]} == *[=/:] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o bashdefault -F _rcx_imagefs rcx-imagefs
