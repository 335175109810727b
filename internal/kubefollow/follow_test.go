package kubefollow

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
)

// server answers requests as the API server does, within the process, so that a bubble's clock goes by it.
type server func(w http.ResponseWriter, r *http.Request)

func (s server) RoundTrip(r *http.Request) (*http.Response, error) {
	answer := httptest.NewRecorder()
	answer.Header().Set("Content-Type", "application/json")
	s(answer, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return answer.Result(), nil
}

// forgets is the answer of a server that does not remember a revision.
func forgets(w http.ResponseWriter) {
	w.WriteHeader(http.StatusGone)
	fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410}`)
}

// page is a part of a list, with one service in it.
func page(w http.ResponseWriter, name, more string) {
	fmt.Fprintf(w, `{"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "10", "continue": %q}, "items": [
		{"metadata": {"namespace": "a", "name": %q, "resourceVersion": "5"}}]}`, more, name)
}

// following is a follower of services.
func following(t *testing.T, s server, tell func(Told[string]) error) Follower[string] {
	t.Helper()
	client, err := Client(&rest.Config{Host: "http://apiserver", Transport: s}, "test", corev1.SchemeGroupVersion, &corev1.Service{}, &corev1.ServiceList{})
	require.NoError(t, err)
	return Follower[string]{
		Client: client, Resource: "services", List: func() runtime.Object { return &corev1.ServiceList{} },
		Slim: func(o runtime.Object) (string, *string) { name := o.(*corev1.Service).Name; return name, &name },
		Tell: tell, Log: slog.New(slog.DiscardHandler),
	}
}

// TestAServerThatForgetsIsNotOverrun: a hundred come to know at the same moment that the server, which has started anew, does not
// remember what they have seen. They do not list everything at the same moment.
func TestAServerThatForgetsIsNotOverrun(t *testing.T) {
	const followers, most, span = 100, 20, spread / 30 // on average 3.3 list within a span
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		restarted := make(chan struct{})
		var anew time.Time
		var mu sync.Mutex
		lists := map[time.Duration]int{} // by the spans since the server is there anew
		s := server(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("watch") == "" {
				mu.Lock()
				defer mu.Unlock()
				if !anew.IsZero() {
					lists[time.Since(anew)/span]++
				}
				page(w, "web", "")
				return
			}
			select {
			case <-r.Context().Done():
			case <-restarted:
				mu.Lock()
				watches := time.Now().Equal(anew)
				mu.Unlock()
				if watches {
					forgets(w)
					return
				}
				<-r.Context().Done()
			}
		})
		var running sync.WaitGroup
		for range followers {
			f := following(t, s, func(Told[string]) error { return nil })
			running.Go(func() { _ = f.Run(ctx) })
		}
		synctest.Wait()
		mu.Lock()
		anew = time.Now()
		mu.Unlock()
		close(restarted)
		time.Sleep(spread + time.Second)
		synctest.Wait()
		stop()
		running.Wait()
		total := 0
		for at, n := range lists {
			total += n
			require.LessOrEqual(t, n, most, "lists %v after the start", at*span)
		}
		require.Equal(t, followers, total, "each lists again, once")
	})
}

// TestAListingThatExpires: what the server forgets while it is being read is read anew, in the end all at once.
func TestAListingThatExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var asked []string
		s := server(func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			switch {
			case q.Get("watch") != "":
				<-r.Context().Done()
				return
			case q.Get("continue") != "":
				forgets(w)
			case q.Get("limit") != "":
				page(w, "web", "page2")
			default:
				page(w, "shop", "")
			}
			asked = append(asked, "limit "+q.Get("limit")+" continue "+q.Get("continue"))
		})
		var known []string
		f := following(t, s, func(told Told[string]) error {
			for name := range told.Changes {
				known = append(known, name)
			}
			return nil
		})
		var running sync.WaitGroup
		running.Go(func() { _ = f.Run(ctx) })
		synctest.Wait()
		stop()
		running.Wait()
		require.Equal(t, []string{"limit 500 continue ", "limit 500 continue page2", "limit 500 continue ", "limit 500 continue page2", "limit  continue "}, asked)
		require.Equal(t, []string{"shop"}, known, "of a listing that broke off nothing is told")
	})
}
