package vm

import (
	"strings"
	"sync"
)

// console keeps the end of what the guest's kernel, and qemu, have said.
type console struct {
	mu   sync.Mutex
	text []byte
}

// consoleKept is enough for a panic's trace and what led to it.
const consoleKept = 16 << 10

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, p...)
	if over := len(c.text) - consoleKept; over > 0 {
		c.text = append(c.text[:0], c.text[over:]...)
	}
	return len(p), nil
}

// quoted is the text below a title, each line indented; nothing if nothing was said.
func (c *console) quoted(title string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for line := range strings.Lines(string(c.text)) {
		if line = strings.TrimRight(line, " \r\n"); line != "" {
			b.WriteString("\n    " + line)
		}
	}
	if b.Len() == 0 {
		return ""
	}
	return "\n" + title + b.String()
}
