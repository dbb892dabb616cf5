// The steps between s = q . k and the softmax, forward and backward, as in attention/score.cuh, for vectors.
#pragma once
#include "cpu/vector.h"

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

// Steps behind the first, all of them compiled in: each passes over a tile of scores in L1, or does not where it is not
// in effect. Passes cost what a loop compiled for the combination costs. A step is a class of cpu/score,
//   static constexpr bool kKeeps;               whether backward needs what forward leaves it for each score
//   static constexpr bool kAdds;                whether it adds to the score: there is no backward, the gradient passes
//   static constexpr bool kMultiplies;          whether what it learns is multiplied by numbers of its own
//   static constexpr bool kPasses;              whether it passes over tiles itself
//   Step(const StepParams&, const Place&, double unit);   unit * x is in log2 units the score that comes in; unit > 0
//   bool used() const;                          not with parameters that are all 0
//   double unit() const;                        the same for what goes out, where the step is in effect
//   Vector<T> forward(Vector<T> x, Rows, Columns, Vector<T>& kept) const;   of kPasses: forward(tile, x, kept)
//   Vector<T> backward(Vector<T> g, Rows, Columns, Vector<T> kept) const;   d loss / d score, of natural units
//   Vector<T> term(Vector<T> g, Rows, Columns) const;   of kMultiplies
// where of rows and columns, numbers of queries and keys, either are those of the lanes.
//
// What is kept of a tile is as large as the tile, and lies in the places of another array: that of the next step is
// `size` elements behind it.
template <class T, template <class> class... Steps>
class StepsOf {
 public:
  template <class Place>
  StepsOf(const Place&, double unit) : unit_(unit) {}

  bool used() const { return false; }
  int64_t kept() const { return 0; }
  double unit() const { return unit_; }

  template <class Tile>
  void forward(const Tile&, T*, T*, int64_t) const {}
  template <class Tile>
  void backward(const Tile&, T*, const T*, int64_t) const {}
  template <class Tile>
  void term(int64_t, const Tile&, T*, const T*, int64_t) const {}

 private:
  double unit_;
};

template <class T, template <class> class First, template <class> class... Rest>
class StepsOf<T, First, Rest...> {
 public:
  template <class Place>
  StepsOf(const Place& place, double unit)
      : first_(place.shape.components, place, unit), rest_(place, first_.used() ? first_.unit() : unit) {}

  bool used() const { return first_.used() || rest_.used(); }
  int64_t kept() const { return keeps() + rest_.kept(); }
  double unit() const { return rest_.unit(); }

  // Nothing is kept where `kept` is null.
  template <class Tile>
  void forward(const Tile& tile, T* x, T* kept, int64_t size) const {
    if constexpr (First<T>::kPasses) {
      if (first_.used()) first_.forward(tile, x, kept);
    } else if (first_.used()) {
      tile.each([&](int64_t at, auto rows, auto columns) ALWAYS_INLINE {
        Vector<T> factor;
        store(x + at, first_.forward(load(x + at), rows, columns, factor));
        if (First<T>::kKeeps && kept) store(kept + at, factor);
      });
    }
    rest_.forward(tile, x, kept && keeps() ? kept + size : kept, size);
  }

  template <class Tile>
  void backward(const Tile& tile, T* g, const T* kept, int64_t size) const {
    rest_.backward(tile, g, keeps() ? kept + size : kept, size);
    if constexpr (!First<T>::kAdds) {
      if (!first_.used()) return;
      tile.each([&](int64_t at, auto rows, auto columns) ALWAYS_INLINE {
        store(g + at, first_.backward(load(g + at), rows, columns, First<T>::kKeeps ? load(kept + at) : Vector<T>{}));
      });
    }
  }

  // Likewise of the parameter of a step, so many after this one, from d loss / d score.
  template <class Tile>
  void term(int64_t step, const Tile& tile, T* g, const T* kept, int64_t size) const {
    const T* const of_rest = keeps() ? kept + size : kept;
    if (step > 0) return rest_.term(step - 1, tile, g, of_rest, size);
    rest_.backward(tile, g, of_rest, size);
    if constexpr (First<T>::kMultiplies) {
      tile.each([&](int64_t at, auto rows, auto columns) ALWAYS_INLINE {
        store(g + at, first_.term(load(g + at), rows, columns));
      });
    }
  }

 private:
  bool keeps() const { return First<T>::kKeeps && first_.used(); }

  First<T> first_;
  StepsOf<T, Rest...> rest_;
};

// All steps. The first is a factor, in most calls alone, and then taken in as sums leave the registers.
template <class T, template <class> class First, template <class> class... Steps>
class ScoreOf {
 public:
  template <class Place>
  explicit ScoreOf(const Place& place)
      : factor_(place.shape.components), steps_(place, factor_.unit()), unit_(T(steps_.unit())) {}

  const First<T>& factor() const { return factor_; }
  bool has_steps() const { return steps_.used(); }  // behind it
  int64_t kept() const { return steps_.kept(); }    // numbers for each score that backward needs
  T unit() const { return unit_; }                  // times what forward makes it is the score in log2 units

  // Of the sums of a tile.
  template <class Tile>
  void forward(const Tile& tile, T* s, T* kept = nullptr, int64_t size = 0) const {
    tile.each([&](int64_t at, auto, auto) ALWAYS_INLINE { store(s + at, factor_.forward(load(s + at))); });
    steps_.forward(tile, s, kept, size);
  }

  // d loss / d s, from d loss / d score (natural units).
  template <class Tile>
  void backward(const Tile& tile, T* g, const T* kept, int64_t size) const {
    steps_.backward(tile, g, kept, size);
    tile.each([&](int64_t at, auto, auto) ALWAYS_INLINE { store(g + at, factor_.backward(load(g + at))); });
  }

  // d loss / d what a step learns that a score has, likewise.
  template <class Tile>
  void term(int64_t step, const Tile& tile, T* g, const T* kept, int64_t size) const {
    steps_.term(step, tile, g, kept, size);
  }

 private:
  First<T> factor_;
  StepsOf<T, Steps...> steps_;
  T unit_;
};
