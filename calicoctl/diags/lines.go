package diags

import (
	"fmt"
	"io"
	"sync"
)

// lines writes whole lines for several at a time. Who reads them may go away: that ends nothing.
type lines struct {
	mu sync.Mutex // guards to
	to io.Writer
}

func (l *lines) say(format string, args ...any) {
	if l.to == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.to, format+"\n", args...)
}
