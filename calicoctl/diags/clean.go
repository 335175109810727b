package diags

import (
	"bytes"
	"io"
	"regexp"
	"slices"
)

// removed stands where a secret was.
const removed = "<removed>"

// named is what names a secret.
const named = `(?i)([\w.-]*(?:passw(?:or)?d|passphrase|secret|token|credential|private[_-]?key|key[_-]data|api[_-]?key)[\w.-]*\\?["']?\s*[:=]\s*)`

// secrets are what secrets look like. Nothing of ours writes them anywhere; logs and configurations of others may have them.
var secrets = []struct {
	hints   []string // one of them is in every line that has such a secret, in small letters: to look for them takes next to nothing
	pattern *regexp.Regexp
	instead string
}{
	{[]string{"eyj"}, regexp.MustCompile(`eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*`), removed},                           // a JSON web token
	{[]string{"bearer", "basic"}, regexp.MustCompile(`(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}`), "$1 " + removed}, // in a header
	{[]string{"://"}, regexp.MustCompile(`(\w+://[^/\s:@]*:)[^/\s@]+@`), "${1}" + removed + "@"},                // of a user, in a URL
	{[]string{`"`}, regexp.MustCompile(`(?i)\b((?:password|key)\s+)"[^"]*"`), `${1}"` + removed + `"`},          // in a configuration of BIRD
	{names, regexp.MustCompile(named + `(\\?["'])[^"'\\]+`), "${1}${2}" + removed},
	{names, regexp.MustCompile(named + `[^\s"'\\,;{}\[\]<]+`), "${1}" + removed},
}

var (
	names     = []string{"passw", "passphrase", "secret", "token", "credential", "key"}
	keyBegins = []byte("PRIVATE KEY-----")
	keyEnds   = regexp.MustCompile(`-----END [A-Z ]*PRIVATE KEY-----`)
)

// Clean is a line without what looks like a secret. Names and places stay, and all that tells one cause from another.
func Clean(line string) string { return string(clean([]byte(line))) }

func clean(line []byte) []byte {
	small := bytes.ToLower(line)
	for _, s := range secrets {
		if slices.ContainsFunc(s.hints, func(hint string) bool { return bytes.Contains(small, []byte(hint)) }) {
			line = s.pattern.ReplaceAll(line, []byte(s.instead))
		}
	}
	return line
}

// longest is how much of a line is looked at as one.
const longest = 1 << 20

// Cleaner passes on lines without what looks like a secret. Private keys go as a whole.
type Cleaner struct {
	to    io.Writer
	begun []byte // a line whose end is still to come
	inKey bool   // between the first and the last line of a private key
}

// NewCleaner returns a Cleaner which writes to another writer. Close writes its last line.
func NewCleaner(to io.Writer) *Cleaner { return &Cleaner{to: to} }

// Write takes a part of the text.
func (c *Cleaner) Write(p []byte) (int, error) {
	n := len(p)
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			break
		}
		if err := c.line(append(c.begun, p[:i+1]...)); err != nil {
			return 0, err
		}
		c.begun, p = c.begun[:0], p[i+1:]
	}
	c.begun = append(c.begun, p...)
	if len(c.begun) < longest {
		return n, nil
	}
	err := c.line(c.begun)
	c.begun = c.begun[:0]
	return n, err
}

// Close writes what has no end of line.
func (c *Cleaner) Close() error {
	if len(c.begun) == 0 {
		return nil
	}
	last := c.begun
	c.begun = nil
	return c.line(last)
}

func (c *Cleaner) line(line []byte) error {
	if c.inKey {
		c.inKey = !keyEnds.Match(line)
		return nil
	}
	if begin := bytes.Index(line, []byte("-----BEGIN ")); begin >= 0 && bytes.Contains(line[begin:], keyBegins) {
		c.inKey = !keyEnds.Match(line) // a key may be one line, in JSON
		line = append(append([]byte{}, line[:begin]...), removed+"\n"...)
	}
	_, err := c.to.Write(clean(line))
	return err
}
