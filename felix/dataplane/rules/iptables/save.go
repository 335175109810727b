package iptables

import (
	"bufio"
	"crypto/sha256"
	"io"
	"regexp"
	"strings"
)

// saved is what iptables-save says of a table, as far as it is ours.
type saved struct {
	chains map[string]savedChain // ours
	hooks  map[string][]savedRule
}

// savedChain is a chain of ours: the hashes of its rules, "" for one that has none, and a digest of their text.
type savedChain struct {
	hashes []string
	text   [sha256.Size]byte
}

// savedRule is a rule in a chain of the kernel's.
type savedRule struct {
	ours bool
	hash string
	args string // behind "-A chain ", as -D takes it
}

// hashOf finds the hash in a rule's comment.
var hashOf = regexp.MustCompile(`--comment "?` + hashMark + `([A-Za-z0-9_-]{16})(?:[ "]|$)`)

// toOurs matches a rule that leads to a chain of ours.
var toOurs = regexp.MustCompile(` -[jg] cali-\S`)

// quoted is text in which anybody may say anything.
var quoted = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

// parseSave reads the output of iptables-save.
func parseSave(in io.Reader) (map[string]saved, error) {
	out := map[string]saved{}
	texts := map[string]*strings.Builder{}
	var table saved
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "*"):
			table = saved{chains: map[string]savedChain{}, hooks: map[string][]savedRule{}}
			out[line[1:]] = table
			texts = map[string]*strings.Builder{}
		case table.chains == nil:
		case strings.HasPrefix(line, ":"):
			name, rest, _ := strings.Cut(line[1:], " ")
			switch {
			case strings.HasPrefix(name, prefixChains):
				table.chains[name] = savedChain{}
				texts[name] = &strings.Builder{}
			case !strings.HasPrefix(rest, "- "):
				table.hooks[name] = nil // a chain of the kernel's has a policy
			}
		case strings.HasPrefix(line, "-A "):
			name, args, _ := strings.Cut(line[3:], " ")
			hash := ""
			if found := hashOf.FindStringSubmatch(args); found != nil {
				hash = found[1]
			}
			if c, ok := table.chains[name]; ok {
				c.hashes = append(c.hashes, hash)
				table.chains[name] = c
				texts[name].WriteString(args + "\n")
			} else if rules, kernels := table.hooks[name]; kernels {
				table.hooks[name] = append(rules, savedRule{ours: hash != "" || toOurs.MatchString(" "+quoted.ReplaceAllString(args, "")), hash: hash, args: args})
			}
		case line == "COMMIT":
			for name, c := range table.chains {
				c.text = sha256.Sum256([]byte(texts[name].String()))
				table.chains[name] = c
			}
		}
	}
	return out, lines.Err()
}
