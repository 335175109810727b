package server

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// errToken is why a join token is not taken.
var errToken = errors.New("join token")

// tokens is a file of join tokens, each good for one certificate of one node. It holds their hashes only, one a line:
// SHA-256 in hexadecimal, node, and when it ends (RFC 3339). Processes that change it lock the file beside it.
type tokens struct {
	path string
}

// joinToken is a line of the file.
type joinToken struct {
	hash, node string
	ends       time.Time
}

// NewJoinToken makes a one-time token with which a node can enrol until it ends, and adds it to the file, which is made
// if missing, for its owner only. The token itself is stored nowhere.
func NewJoinToken(path, node string, life time.Duration) (string, error) {
	if !nodeName.MatchString(node) {
		return "", fmt.Errorf("%q is no node name: write lower-case letters, digits, dashes and dots", node)
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return "", err
	}
	token := base64.RawURLEncoding.EncodeToString(secret)
	t := tokens{path: path}
	err := t.change(func(list []joinToken) ([]joinToken, error) {
		return append(list, joinToken{hash: hashToken(token), node: node, ends: time.Now().Add(life).UTC()}), nil
	})
	if err != nil {
		return "", err
	}
	return token, nil
}

// redeem uses up a token. The error wraps errToken if it is not good; then nothing is used up. Nothing is granted before
// the file says on disk that the token is gone.
func (t tokens) redeem(token, node string, now time.Time) error {
	if t.path == "" {
		return fmt.Errorf("%w: this typha has no store of them; give its path by --tokens", errToken)
	}
	hash := hashToken(token) // 256 random bits are looked up by their hash: comparing takes no secret's time
	return t.change(func(list []joinToken) ([]joinToken, error) {
		var left []joinToken
		found := false
		for _, j := range list {
			switch {
			case j.hash == hash && j.node != node:
				return nil, fmt.Errorf("%w is for another node than %q", errToken, node)
			case j.hash == hash && j.ends.Before(now):
				return nil, fmt.Errorf("%w ended at %s; have a new one made", errToken, j.ends.Format(time.RFC3339))
			case j.hash == hash:
				found = true
			case j.ends.After(now):
				left = append(left, j)
			}
		}
		if !found {
			return nil, fmt.Errorf("%w is not known, or was used already; each is good for one enrolment", errToken)
		}
		return left, nil
	})
}

// change replaces the list under the lock.
func (t tokens) change(change func([]joinToken) ([]joinToken, error)) (err error) {
	lock, err := os.OpenFile(t.path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("join tokens: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("join tokens: locking %s: %w", t.path, err)
	}
	list, err := t.read()
	if err != nil {
		return err
	}
	if list, err = change(list); err != nil {
		return err
	}
	return t.write(list)
}

func (t tokens) read() ([]joinToken, error) {
	f, err := os.Open(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("join tokens: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("join tokens: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("join tokens: %s can be used by others than its owner (mode %04o); run chmod 600 on it", t.path, info.Mode().Perm())
	}
	var body bytes.Buffer
	if _, err := body.ReadFrom(f); err != nil {
		return nil, fmt.Errorf("join tokens: %w", err)
	}
	return parseTokens(t.path, body.String())
}

func parseTokens(path, body string) ([]joinToken, error) {
	var out []joinToken
	for i, line := range strings.Split(body, "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 3 || len(fields[0]) != hex.EncodedLen(sha256.Size) {
			return nil, fmt.Errorf("join tokens: %s line %d is not: hash, node, time; remove it", path, i+1)
		}
		ends, err := time.Parse(time.RFC3339, fields[2])
		if err != nil {
			return nil, fmt.Errorf("join tokens: %s line %d: %w; remove the line", path, i+1, err)
		}
		out = append(out, joinToken{hash: fields[0], node: fields[1], ends: ends})
	}
	return out, nil
}

// write replaces the file: at every moment there is the old list or the new one, on disk.
func (t tokens) write(list []joinToken) error {
	var body bytes.Buffer
	for _, j := range list {
		fmt.Fprintf(&body, "%s %s %s\n", j.hash, j.node, j.ends.Format(time.RFC3339))
	}
	f, err := os.CreateTemp(filepath.Dir(t.path), filepath.Base(t.path)+".new-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("join tokens: %w", err)
	}
	_, err = f.Write(body.Bytes())
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), t.path)
	}
	if err != nil {
		return fmt.Errorf("join tokens: %w", errors.Join(err, os.Remove(f.Name())))
	}
	dir, err := os.Open(filepath.Dir(t.path))
	if err != nil {
		return fmt.Errorf("join tokens: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func hashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}
