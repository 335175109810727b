package lease

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// compactAt is how large a journal may grow, in bytes, before it is written anew, and how much larger than its beginning.
const (
	compactAt    = 256 << 10
	compactRatio = 4
)

// Journal is the file of records. Appending is only taking note. Write sees to it that what was appended outlives the process, Wait
// that it is on the disk, for all who wait at the same time by one sync. After a write that failed nobody knows what the file
// holds: it is made anew, as a whole, and until that works everybody gets the error.
type Journal struct {
	path, witness string
	boot          string
	owner         owner // whose journal it is

	mu       sync.Mutex // guards the following; held for moments only
	buffer   []byte     // appended and not written
	appended uint64     // number of the last record there

	lock *os.File // one process has the journal at a time

	disk    sync.Mutex // held while the disk works
	durable uint64     // number of the last record that is on the disk; guarded by disk

	writing sync.Mutex // guards the following; taken while disk is held, or alone
	file    *os.File   // nil: it is to be made anew
	size    int
	begin   int    // size of the state at its beginning
	written uint64 // number of the last record that is in the file

	commits, failures uint64 // for metrics; guarded by mu
}

// owner is what a journal must know of the one who keeps it.
type owner interface {
	// snapshot is the present state as the beginning of a journal, and the number of the last record in it. What was
	// appended is part of it, and need not be written any more.
	snapshot() (number uint64, body []byte)
	// confirmed is when typha confirmed the epoch last.
	confirmed() time.Duration
}

// openJournal reads what is in a directory and locks it: one process writes it at a time. The witness lies elsewhere, in
// a directory that a reboot clears.
func openJournal(dir, witness, boot string) (j *Journal, data []byte, w Witness, err error) {
	for _, d := range []string{dir, filepath.Dir(witness)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, nil, w, fmt.Errorf("journal of addresses: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, nil, w, fmt.Errorf("journal of addresses: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, nil, w, fmt.Errorf("journal of addresses in %s: another process has it, end that first: %w", dir, err)
	}
	j = &Journal{path: filepath.Join(dir, "journal"), witness: witness, boot: boot, lock: lock}
	if data, err = os.ReadFile(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		_ = lock.Close()
		return nil, nil, w, fmt.Errorf("journal of addresses: %w", err)
	}
	said, err := os.ReadFile(witness)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		_ = lock.Close()
		return nil, nil, w, fmt.Errorf("witness of the journal of addresses: %w", err)
	}
	return j, data, DecodeWitness(said), nil
}

// Append takes note of records; the last one has the number that is returned. The caller must keep the order.
func (j *Journal) Append(records []Record) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range records {
		j.appended++
		j.buffer = Encode(j.buffer, j.appended, r)
	}
	return j.appended
}

// take forgets what was appended, since a state has it, and returns the number of the last record.
func (j *Journal) take() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.buffer = nil
	return j.appended
}

// Write returns when the record of a number, and all before it, are in the file: another process would find them, and another boot
// of the host perhaps not.
func (j *Journal) Write(number uint64) error {
	j.writing.Lock()
	written, stale := j.written >= number, j.stale()
	var err error
	if !written && !stale {
		_, err = j.write()
	}
	j.writing.Unlock()
	if stale && !written {
		return j.Wait(number)
	}
	return j.outcome(err)
}

// Wait returns when the record of a number, and all before it, are on the disk.
func (j *Journal) Wait(number uint64) error {
	j.disk.Lock()
	defer j.disk.Unlock()
	if j.durable >= number {
		return nil // somebody's sync did it while this one waited
	}
	err := j.commit()
	j.mu.Lock()
	j.commits++
	j.mu.Unlock()
	return j.outcome(err)
}

// outcome counts what failed.
func (j *Journal) outcome(err error) error {
	if err == nil {
		return nil
	}
	j.mu.Lock()
	j.failures++
	j.mu.Unlock()
	return fmt.Errorf("journal of addresses: %w", err)
}

// stale tells whether the file is to be made anew. Writing is held.
func (j *Journal) stale() bool { return j.file == nil || j.size > max(compactAt, compactRatio*j.begin) }

// write puts all that was appended into the file, and returns the number of the last record. Writing is held.
func (j *Journal) write() (uint64, error) {
	j.mu.Lock()
	batch, number := j.buffer, j.appended
	j.buffer = nil
	j.mu.Unlock()
	if _, err := j.file.Write(batch); err != nil {
		return 0, errors.Join(err, j.close())
	}
	j.size += len(batch)
	j.written = number
	return number, nil
}

// commit brings all that was appended to the disk. The disk is held; others may write while it works.
func (j *Journal) commit() error {
	j.writing.Lock()
	if j.stale() {
		defer j.writing.Unlock()
		return j.rewrite()
	}
	number, err := j.write()
	file := j.file
	j.writing.Unlock()
	if err != nil {
		return err
	}
	if err = datasync(file); err == nil {
		err = j.promise(number)
	}
	if err != nil {
		j.writing.Lock()
		defer j.writing.Unlock()
		return errors.Join(err, j.close())
	}
	return nil
}

// datasync waits for what is in a file to be on the disk. The file may be closed meanwhile, which is an error then.
func datasync(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = syscall.Fdatasync(int(fd)) })
	return errors.Join(err, failed)
}

// rewrite makes the file anew. The disk and writing are held.
func (j *Journal) rewrite() error {
	number, body := j.owner.snapshot()
	fresh := j.path + ".new"
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return errors.Join(err, j.close())
	}
	if _, err = f.Write(body); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(fresh, j.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(j.path))
	}
	if err != nil {
		return errors.Join(err, f.Close(), j.close())
	}
	err = j.close()
	j.file, j.size, j.begin, j.written = f, len(body), len(body), number
	if failed := j.promise(number); failed != nil {
		err = errors.Join(err, failed, j.close())
	}
	return err
}

// promise has the witness say what is on the disk; only then may anybody rely on it. If it cannot, nobody may. The disk is held.
func (j *Journal) promise(number uint64) error {
	w := Witness{Boot: j.boot, Number: number, Confirmed: j.owner.confirmed()}
	f, err := os.OpenFile(j.witness, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.WriteAt(w.Encode(), 0) // one write of a few bytes: it is there, or it is not
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		j.durable = max(j.durable, number)
	}
	return err
}

// close lets go of the file, which is made anew by the next commit. Writing is held.
func (j *Journal) close() error {
	if j.file == nil {
		return nil
	}
	f := j.file
	j.file = nil
	return f.Close()
}

// Close ends the use of the journal.
func (j *Journal) Close() error {
	j.disk.Lock()
	defer j.disk.Unlock()
	j.writing.Lock()
	defer j.writing.Unlock()
	return errors.Join(j.close(), j.lock.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
