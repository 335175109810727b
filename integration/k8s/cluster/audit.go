package cluster

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"
)

// ours is what the names of all accounts of Muslin begin with.
const ours = "system:serviceaccount:kube-system:calico-"

// Request is one of Muslin's that the API has answered, or, of a watch, begun to answer.
type Request struct {
	Account string // without what the names of all have in common: "typha"
	Pod     string // of the process
	Verb    string // get, list, watch, create, update, patch, delete …
	What    string // resource and subresource: "pods/status"
	Path    string
	Query   url.Values
	Code    int
	At      time.Time
}

// Selection is the part of a list's or watch's query by which it differs from others of the same kind.
func (r Request) Selection() string {
	return strings.Trim(r.Path+" "+r.Query.Get("labelSelector")+" "+r.Query.Get("fieldSelector"), " ")
}

// AuditEnd is where the audit log ends now, to read from later.
func (c *Cluster) AuditEnd() (int64, error) {
	info, err := os.Stat(c.auditLog())
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Requests are those of Muslin in the audit log from a place in it on.
func (c *Cluster) Requests(from int64) ([]Request, error) {
	log, err := os.Open(c.auditLog())
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if _, err := log.Seek(from, io.SeekStart); err != nil {
		return nil, err
	}
	return readAudit(log)
}

// readAudit reads an audit log (audit.k8s.io/v1 Event, one a line). A line that is not whole yet is left out.
func readAudit(log io.Reader) (all []Request, err error) {
	lines := bufio.NewReader(log)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		var e struct {
			Verb, Stage, RequestURI  string
			RequestReceivedTimestamp time.Time
			ResponseStatus           struct{ Code int }
			User                     struct {
				Username string
				Extra    map[string][]string
			}
			ObjectRef struct{ Resource, Subresource string }
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("audit log: %w", err)
		}
		account, is := strings.CutPrefix(e.User.Username, ours)
		// Of a watch there is a line when it begins, and another when it ends; one that is refused only ends.
		if !is || e.Verb == "watch" && e.Stage != "ResponseStarted" && e.ResponseStatus.Code < 400 {
			continue
		}
		at, err := url.Parse(e.RequestURI)
		if err != nil {
			return nil, fmt.Errorf("audit log: %w", err)
		}
		all = append(all, Request{
			Account: account, Pod: strings.Join(e.User.Extra["authentication.kubernetes.io/pod-name"], ""), Verb: e.Verb,
			What: strings.TrimSuffix(e.ObjectRef.Resource+"/"+e.ObjectRef.Subresource, "/"), Path: at.Path, Query: at.Query(),
			Code: e.ResponseStatus.Code, At: e.RequestReceivedTimestamp,
		})
	}
}
