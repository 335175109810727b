package lease

import (
	"os"
	"testing"
	"time"
)

// At has a pool believe in a boot and a time since then.
func (c Config) At(boot string, now func() time.Duration) Config {
	c.boot, c.now = boot, now
	return c
}

// BreakDisk has writes of the journal fail as on a full disk, until the returned function is called.
func (p *Pool) BreakDisk(t *testing.T) (mend func()) {
	t.Helper()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err == nil {
		err = os.Symlink("/dev/full", p.journal.path+".new")
	}
	if err != nil {
		t.Fatal(err)
	}
	p.journal.writing.Lock()
	defer p.journal.writing.Unlock()
	_ = p.journal.close()
	p.journal.file = full
	return func() {
		if err := os.Remove(p.journal.path + ".new"); err != nil {
			t.Error(err)
		}
	}
}

// HoldDisk has nothing come to the disk until the returned function is called.
func (p *Pool) HoldDisk() (release func()) {
	p.journal.disk.Lock()
	return p.journal.disk.Unlock
}

// Commits are the writes of the journal.
func (p *Pool) Commits() (all, failed uint64) {
	p.journal.mu.Lock()
	defer p.journal.mu.Unlock()
	return p.journal.commits, p.journal.failures
}
